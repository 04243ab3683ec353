# What lets do-failover's load balancers refresh this Droplet, and nothing else. Run it on each peer, as root.
# It may be run again: it replaces the key line and the script.
set -eu
user=@USER@ home=@HOME@ program=@PROGRAM@
if id "$user" >/dev/null 2>&1; then
    if [ "$(eval echo "~$user")" != "$home" ]; then
        echo "user $user is there with another home than $home: nothing was changed; choose another name (--user)" >&2
        exit 1
    fi
elif command -v useradd >/dev/null 2>&1; then
    useradd --system --user-group --home-dir "$home" --no-create-home --shell /bin/sh "$user"
else # BusyBox
    addgroup -S "$user"
    adduser -S -D -H -h "$home" -s /bin/sh -G "$user" "$user"
fi
printf '%s:*\n' "$user" | chpasswd -e # no password fits; with `!` instead of `*` sshd would refuse the key too
umask 022
mkdir -p "${program%/*}" "$home/.ssh"
cat >"$program.new" <<'DO_FAILOVER_PEER'
@SCRIPT@
DO_FAILOVER_PEER
chmod 0755 "$program.new"
mv -f "$program.new" "$program"
# All of it is root's: whoever has the key can't add another.
cat >"$home/.ssh/authorized_keys.new" <<'DO_FAILOVER_KEY'
@LINE@
DO_FAILOVER_KEY
mv -f "$home/.ssh/authorized_keys.new" "$home/.ssh/authorized_keys"
chown -R 0:0 "$home"
chmod 0755 "$home" "$home/.ssh"
chmod 0644 "$home/.ssh/authorized_keys"
if command -v restorecon >/dev/null 2>&1; then restorecon -R "$home" "${program%/*}" || true; fi
