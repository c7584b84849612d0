"""Line searches: backtracking and zoom."""
