"""vDPA: devices that vifd makes on management devices, handed to VMs; only `inventory` runs outside the privileged helper too."""
