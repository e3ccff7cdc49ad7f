#!/run/tollgate-vm/packages/tools/bin/busybox sh
# PID 1 of a guest, on the host's root, which is read-only. It puts a throw-away overlay above that, goes in there, runs
# the command, and powers off. `settings` and `command` beside it are written for each guest.
VM=/run/tollgate-vm
B=$VM/packages/tools/bin/busybox
. $VM/settings

fail() {
    $B echo "cannot set up the guest: $*"
    $B poweroff -f
}

modprobe() {
    LD_LIBRARY_PATH=$LIBRARIES $VM/packages/tools/sbin/modprobe -d "$MODULES" "$@"
}

if [ "$1" != inside ]; then
    $B mount -t proc proc /proc 2>/dev/null
    modprobe overlay || fail "no overlay file system"
    $B mount -t tmpfs stage $VM/stage
    $B mkdir $VM/stage/upper $VM/stage/work $VM/stage/root
    N=$VM/stage/root
    $B mount -t overlay -o lowerdir=/,upperdir=$VM/stage/upper,workdir=$VM/stage/work overlay $N || fail "no overlay"
    $B mount -t tmpfs -o mode=755 run $N/run
    $B mkdir -p $N$VM
    case $MONITOR in
        uml) $B mount -t hostfs none $N$VM -o $VM ;;
        qemu) $B mount --bind $VM $N$VM ;;
    esac || fail "no $VM"
    $B mount --bind $N$VM/share "$N$SHARE" || fail "no $SHARE"
    $B mount -t proc proc $N/proc
    cd $N && $B mount --move . / && exec $B chroot . $VM/init inside
    fail "cannot enter the overlay"
fi

$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev || fail "no /dev"
$B mkdir -p /dev/pts /dev/shm
$B mount -t devpts devpts /dev/pts
$B mount -t tmpfs shm /dev/shm
$B ln -sf /proc/self/fd /dev/fd
$B ln -sf /proc/self/fd/1 /dev/stdout
$B ln -sf /proc/self/fd/2 /dev/stderr
$B mkdir -p /run/lock /run/netns /run/bin
$B mount -t cgroup2 cgroup2 /sys/fs/cgroup
$B mount -t bpf bpf /sys/fs/bpf
$B mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
$B mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null

# The kernel calls it for what it lacks, and so may the command.
$B cat >/run/bin/modprobe <<END
#!$B sh
export LD_LIBRARY_PATH='$LIBRARIES'
exec $VM/packages/tools/sbin/modprobe -d '$MODULES' "\$@"
END
$B chmod 755 /run/bin/modprobe
echo /run/bin/modprobe >/proc/sys/kernel/modprobe
$B hostname tollgate-vm
$B ifconfig lo up

# The command writes into pipes, as it would under cargo: a terminal would make it print colours. The devices are raw, so
# that every byte arrives as it is.
$B mkfifo /run/stdout /run/stderr || fail "no pipes"
( $B stty raw -echo <&1 2>/dev/null; exec $B cat /run/stdout ) >$STDOUT &
out=$!
( $B stty raw -echo <&1 2>/dev/null; exec $B cat /run/stderr ) >$STDERR &
err=$!
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
