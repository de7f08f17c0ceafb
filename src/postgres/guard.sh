# Outlives whoever started a throwaway server, and ends the server and its folder with them, kill -9 included.
#   $1      the folder
#   stdin   the id of a process that must not outlive its owner, whenever one starts; an empty line when it has ended;
#           "keep" to leave everything as it is. stdin ends when the owner does.
trap '' HUP INT QUIT TERM
pid=
while read -r line; do
    [ "$line" = keep ] && exit 0
    pid=$line
done
if [ -n "$pid" ] && kill -QUIT "$pid"; then
    # PostgreSQL removes this file last. A zombie that nobody reaps answers kill -0 for ever, and a bound is needed anyway.
    tries=0
    while [ -e "$1/data/postmaster.pid" ] && kill -0 "$pid" && [ "$tries" -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    kill -KILL -- "-$pid"
fi
# A process that is just ending may still write.
rm -rf -- "$1" || { sleep 0.5; rm -rf -- "$1"; }
