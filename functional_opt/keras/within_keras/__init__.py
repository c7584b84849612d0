"""Makes optimizers of the facade optimizers of the real Keras, too, when its `compile` asks."""
