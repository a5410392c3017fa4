-- What wrk asks, `wrk -s wrk.lua URL -- METHOD [close]`; the result comes as one line of JSON.
function init(args)
  wrk.method = args[1]
  wrk.body = wrk.method == "POST" and string.rep("x", 32) or nil
  if args[2] == "close" then wrk.headers["Connection"] = "close" end
end

function done(summary, latency)
  local failed = 0
  for _, count in pairs(summary.errors) do failed = failed + count end
  local line = '\n{"requests/s": %f, "p50, ms": %f, "p99, ms": %f, "failed": %d}\n'
  local rate = summary.requests / summary.duration * 1e6 -- wrk counts in microseconds
  io.write(line:format(rate, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, failed))
end
