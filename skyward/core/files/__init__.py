"""Files: folders of the driver on the nodes, and the nodes' files in the driver."""
