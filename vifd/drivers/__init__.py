"""Network drivers: each knows one network system and no hypervisor. They plan; they never touch the kernel."""
