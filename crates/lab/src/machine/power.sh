# The power supply of one machine: its network cable, its systemd-nspawn, and both again when it reboots itself.
# A shell script because it outlives the process that started it, whatever program that was.
#
#   sh -c "$TEXT" power VERB DIR CGROUP MACHINE ADDRESS GATEWAY MAC [systemd-nspawn arguments...]
#
# VERB: unplug (the cable and its namespace go, at once), plug (a fresh one), run (plugged already: boot, and stay).
set -u
verb=$1 dir=$2 cg=$3 m=$4 address=$5 gateway=$6 mac=$7
shift 7
fabric=$dir/netns/fabric netns=$dir/netns/$m

unplug() {
    # Explicitly, and not when the last process lets go of the namespace: nothing of a dead machine may answer, and
    # no vxlan, bridge or firewall rule of it may survive into its next boot.
    nsenter --net="$fabric" -- ip link del "$m" 2>/dev/null
    umount -l "$netns" 2>/dev/null      # lazily: nspawn's parent still looks at it
    rm -f "$netns"
}

plug() {
    # A new namespace inherits the host's ip_forward. A fresh server has 0, and only a dockerd that turns it on
    # itself sets the FORWARD policy to DROP, as on a real one.
    : >"$netns" && unshare --net="$netns" sh -ec '
        m=$1 address=$2 gateway=$3 mac=$4 fabric=$5
        echo 0 >/proc/sys/net/ipv4/ip_forward
        ip link set lo up
        ip link add eth0 address "$mac" type veth peer name "$m" netns "$fabric"
        ip addr add "$address/24" dev eth0
        ip link set eth0 up
        ip route add default via "$gateway"' plug "$m" "$address" "$gateway" "$mac" "$fabric" &&
        nsenter --net="$fabric" -- ip link set "$m" master br0 up
}

run() (
    # nspawn starts in the machine's cgroup, with a private view of the mounts in which /sys/fs/cgroup is pure
    # cgroup v2 (nspawn and the systemd inside go by that) and nspawn's own scratch files are out of the host's way.
    echo 0 >"$cg/$m/cgroup.procs" || exit 1
    # dbus-daemon wants more open files than some hosts allow by default.
    ulimit -n 1048576 2>/dev/null
    export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_NSPAWN_API_VFS_WRITABLE=network SYSTEMD_NSPAWN_LOCK=0
    exec unshare -m --propagation slave sh -ec '
        [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] || mount -t cgroup2 none /sys/fs/cgroup
        mkdir -p /run/systemd
        mount -t tmpfs none /run/systemd
        mkdir /run/systemd/nspawn
        exec "$@"' sh systemd-nspawn "$@"
)

case $verb in
unplug) unplug; exit 0 ;;
plug) unplug; plug ;;
run)
    while :; do
        run "$@"
        rc=$?
        # 133 is how nspawn --keep-unit says "the machine asked for a reboot".
        [ $rc = 133 ] || exit $rc
        echo 1 2>/dev/null >"$cg/$m/cgroup.kill"
        i=0
        until grep -q '^populated 0' "$cg/$m/cgroup.events" || [ $i = 500 ]; do i=$((i + 1)); sleep 0.02; done
        # The cgroup itself, too: nspawn has enabled controllers in it, and so no process may be moved into it again.
        find "$cg/$m" -depth -type d -exec rmdir {} +
        mkdir -p "$cg/$m/exec"
        unplug
        plug || exit 1
    done
    ;;
esac
