"""RPMsg: both roles, over both rings, against each other and against raw queues."""
