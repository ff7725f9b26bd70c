"""How far two results are apart, from the pictures and latents alone."""
