"""What several rooms need of the operating system: its limits, and how to start processes."""
