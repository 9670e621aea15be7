"""Images as the pixel values a vision tower wants."""
