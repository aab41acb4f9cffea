"""Facts and limits of the operating system that several rooms need."""
