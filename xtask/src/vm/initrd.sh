#!/bin/busybox sh
# The first process of an emulated machine: mounts the host's root and the guest's folder, and goes on with `init.sh`.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t devtmpfs dev /dev
for module in /modules/*; do
    $B insmod $module || echo "cannot load $module"
done
OPTIONS=trans=virtio,version=9p2000.L,msize=512000
$B mount -t 9p -o ro,$OPTIONS,cache=loose root /root
$B mount -t 9p -o rw,$OPTIONS,cache=mmap vm /root/run/tollgate-vm
$B mount --move /proc /root/proc
$B mount --move /dev /root/dev
exec $B switch_root /root /run/tollgate-vm/init
