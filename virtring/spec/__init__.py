"""What the virtio standard fixes: structures, bits and ids. No logic, no imports of ours."""
