"""How far two results are apart, from pictures and latents alone; and what people say of them."""
