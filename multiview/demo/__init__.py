"""Generated objects with known ground truth, and the models that draw them."""
