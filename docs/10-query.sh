# query QUERY: what Prometheus at $PROMETHEUS answers, on a line each series: labels and value.
query() {
  curl -sG "http://$PROMETHEUS/api/v1/query" --data-urlencode "query=$1" | sed 's/{"metric":/\n/g' |
    sed -n 's/,"value":\[[^,]*,"\([^"]*\)".*/ \1/p' | sed 's/"\([a-z_]*\)":/\1=/g' | sort |
    awk '{ printf($2 == int($2) ? "%s %d\n" : "%s %.3g\n", $1, $2) }'
}
