"""What runs on a node: the agent, its fork server, and the slots that run tasks."""
