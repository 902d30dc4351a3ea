"""SR-IOV: VFs of NICs, handed to VMs; only `inventory` runs outside the privileged helper too."""
