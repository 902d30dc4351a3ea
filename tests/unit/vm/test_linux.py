from tests.vm.linux import load_order, parse_dependencies, wanted

MODULES = """\
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/fs/netfs/netfs.ko.xz:
kernel/drivers/net/macvtap.ko.xz: kernel/drivers/net/tap.ko.xz
kernel/drivers/net/tap.ko.xz:
kernel/drivers/net/wireless/ath/ath.ko.xz:
kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/virt/lib/irqbypass.ko.xz
kernel/virt/lib/irqbypass.ko.xz:
"""
DEPENDENCIES = parse_dependencies(MODULES)


def test_modules_are_loaded_after_what_they_need_and_once() -> None:
    assert load_order(["9pnet_virtio", "9p"], DEPENDENCIES) == [
        "kernel/fs/netfs/netfs.ko.xz",
        "kernel/net/9p/9pnet.ko.xz",
        "kernel/net/9p/9pnet_virtio.ko.xz",
        "kernel/fs/9p/9p.ko.xz",
    ]


def test_a_module_that_is_built_in_is_not_loaded_and_names_are_those_of_modprobe() -> None:
    assert load_order(["virtio_pci", "vfio_pci"], DEPENDENCIES)[-1] == "kernel/drivers/vfio/pci/vfio-pci.ko.xz"
    assert load_order(["virtio_pci"], DEPENDENCIES) == []


def test_modules_of_networks_are_chosen_with_what_they_need_and_no_radio() -> None:
    chosen = wanted(DEPENDENCIES)
    assert {"kernel/drivers/net/macvtap.ko.xz", "kernel/drivers/net/tap.ko.xz", "kernel/virt/lib/irqbypass.ko.xz"} <= chosen
    assert "kernel/drivers/net/wireless/ath/ath.ko.xz" not in chosen
