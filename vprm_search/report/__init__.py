"""What a person sees of a search: the terminal, one HTML file, a PNG, and calibration diagrams."""
