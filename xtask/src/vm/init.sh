#!/run/tollgate-vm/packages/tools/bin/busybox sh
# PID 1 of a guest, on the host's root, which is read-only. It puts a throw-away overlay above that, goes in there, runs
# the command, and powers off. `settings` and `command` beside it are written for each guest.
OUTSIDE=/run/tollgate-vm
# Not below /run or /tmp, which a command may cover with mounts of its own, and then want a module.
INSIDE=/tollgate-vm
case $1 in
    inside) VM=$INSIDE ;;
    *) VM=$OUTSIDE ;;
esac
B=$VM/packages/tools/bin/busybox
. $VM/settings
TOOLS=$VM/packages/tools
LIBRARIES=$TOOLS/usr/lib/x86_64-linux-gnu:$TOOLS/lib/x86_64-linux-gnu
MODULES=$VM/packages/$KERNEL

fail() {
    echo "cannot set up the guest: $*"
    $B poweroff -f
}

enter_overlay() {
    $B mount -t proc proc /proc 2>/dev/null
    LD_LIBRARY_PATH=$LIBRARIES $TOOLS/sbin/modprobe -d $MODULES overlay || fail "no overlay file system"
    $B mount -t tmpfs stage $VM/stage
    $B mkdir $VM/stage/upper $VM/stage/work $VM/stage/root
    root=$VM/stage/root
    $B mount -t overlay -o lowerdir=/,upperdir=$VM/stage/upper,workdir=$VM/stage/work overlay $root || fail "no overlay"
    $B mkdir $root$INSIDE
    case $MONITOR in
        uml) $B mount -t hostfs none $root$INSIDE -o $VM ;;
        qemu) $B mount --bind $VM $root$INSIDE ;;
    esac || fail "no $INSIDE"
    $B mount -t proc proc $root/proc
    cd $root && $B mount --move . / && exec $B chroot . $INSIDE/packages/tools/bin/busybox sh $INSIDE/init inside
    fail "cannot enter the overlay"
}

# Where one of the command's streams goes. Virtual serial ports have names: how the kernel counts them is its own affair.
device() {
    case $MONITOR in
        uml) echo $1 ;;
        qemu)
            for port in /sys/class/virtio-ports/*; do
                read -r name <$port/name
                [ "$name" != $1 ] || echo /dev/${port##*/}
            done
            ;;
    esac
}

[ $VM = $INSIDE ] || enter_overlay
$B mount -t tmpfs -o mode=755 run /run
$B mkdir -p "$SHARE" && $B mount --bind $VM/share "$SHARE" || fail "no $SHARE"
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev || fail "no /dev"
$B mkdir -p /dev/pts /dev/shm
$B mount -t devpts devpts /dev/pts
$B mount -t tmpfs shm /dev/shm
$B ln -sf /proc/self/fd /dev/fd
$B ln -sf /proc/self/fd/1 /dev/stdout
$B ln -sf /proc/self/fd/2 /dev/stderr
$B mkdir -p /run/lock /run/netns
$B mount -t cgroup2 cgroup2 /sys/fs/cgroup
$B mount -t bpf bpf /sys/fs/bpf
$B mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
$B mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
$B hostname tollgate-vm
$B ifconfig lo up

# The kernel calls it for what it lacks, iptables calls it, and so may the command.
$B rm -f /sbin/modprobe
$B cat >/sbin/modprobe <<END
#!$B sh
export LD_LIBRARY_PATH=$LIBRARIES
exec $TOOLS/sbin/modprobe -d $MODULES "\$@"
END
$B chmod 755 /sbin/modprobe
echo /sbin/modprobe >/proc/sys/kernel/modprobe

# The command writes into pipes, as it would under cargo: a terminal would make it print colours. The devices are raw, so
# that every byte arrives as it is.
$B mkfifo /run/stdout /run/stderr || fail "no pipes"
( $B stty raw -echo <&1 2>/dev/null; exec $B cat /run/stdout ) >"$(device $STDOUT)" &
out=$!
( $B stty raw -echo <&1 2>/dev/null; exec $B cat /run/stderr ) >"$(device $STDERR)" &
err=$!
# Open files: the kernel begins with 1024, which is less than servers and tests are used to.
ulimit -n 65536
echo "$STARTED"
# Of the kernel's command line, what the kernel does not know has become the environment.
$B env -i /bin/sh $VM/command </dev/null >/run/stdout 2>/run/stderr
echo $? >$VM/status.new
# What the command has left behind would hold the pipes open.
for round in 1 2; do
    for process in /proc/[0-9]*; do
        case ${process#/proc/} in
            1 | $out | $err) ;;
            *) kill -9 ${process#/proc/} ;;
        esac
    done 2>/dev/null
done
wait $out $err
# Only now: a status means that the output is whole, too.
$B mv $VM/status.new $VM/status
$B sync
$B poweroff -f
