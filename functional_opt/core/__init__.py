"""The foundation of the library: values, leaves, transformations, schedules and slots. It contains no algorithms."""
