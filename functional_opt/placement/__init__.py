"""Where arrays lie on a mesh of devices: the mesh of a tree, the shardings of a state, and how to split one more axis."""
