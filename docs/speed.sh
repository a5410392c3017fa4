# speed SECONDS [ADDRESS]: the hashes per second of the next SECONDS, as webui at ADDRESS has them.
# webui shows a second when all workers have counted it, up to 4 seconds later.
speed() {
  sleep $(($1 + 4))
  curl -s "http://${2:-localhost:8000}/speed" | sed 's/.*"speed": *\[\([^]]*\)\].*/\1/' |
    tr , '\n' | tail -n "$1" | awk '{ sum += $1 } END { printf "%.1f hashes/second\n", sum / NR }'
}
