"""Variables, the recording of code that uses them, and gradients with respect to them."""
