"""Measurements that leave the updates as they are: metrics, monitors, the noise scale."""
