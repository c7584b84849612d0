"""Where arrays lie on a mesh of devices: shardings of a state, axes split further, owners of matrices."""
