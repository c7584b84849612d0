"""Values, leaves, transformations, schedules and slots: all else builds on them, and they know no algorithm."""
