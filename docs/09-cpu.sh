# cpu SECONDS: what the containers of the namespace `default` use of the CPUs, in thousandths of one (m).
# The difference of two looks at the kubelets' counters, SECONDS apart: 30 or more, for they count every 10 to 30.
cpu() {
  { cpu_counters; sleep "$1"; cpu_counters; } | awk -F '"' '
    { split($7, value, " "); seconds = value[2]; at = value[3] / 1000 }
    $6 in start { if (at > start[$6]) used[$2] += (seconds - first[$6]) / (at - start[$6]); next }
    { first[$6] = seconds; start[$6] = at }
    END { for (name in used) printf "%-8s %4dm\n", name, 1000 * used[name] }' | sort
}
cpu_counters() {
  local node
  for node in $(kubectl get nodes -o name); do
    kubectl get --raw "/api/v1/nodes/${node#node/}/proxy/metrics/resource"
  done | grep '^container_cpu_usage.*namespace="default"'
}
