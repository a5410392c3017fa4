# speed SECONDS [ADDRESS]: the hashes per second that are counted in the next SECONDS, as webui at ADDRESS has them.
# webui knows a second's speed two seconds later: hence the 3 seconds more.
speed() {
  local since=$(date +%s)
  sleep $(($1 + 3))
  curl -s "http://${2:-localhost:8000}/json?since=$since" | sed 's/.*\[\(.*\)\].*/\1/' | tr , '\n' |
    awk '{ sum += $1 } END { printf "%.1f hashes/second\n", sum / NR }'
}
