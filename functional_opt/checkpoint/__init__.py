"""Params and optimizer states that outlive a process: arrays with names, and a manifest that says what they are."""
