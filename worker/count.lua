-- Counts one batch: hashes, coins and speed together, once. Redis runs a script whole or not at all and nothing in
-- between, so the check and the write are one step. A batch carries its worker's name and a number that grows by one;
-- one that was applied already, because its answer was lost or it comes in late behind its own retry, adds nothing.
-- The number is kept for good, a few bytes for each start of a worker: one that expires lets its batch in again.
-- A failing script is not undone, so what can fail (a key of another type) comes before anything is written.
local worker, seq, units = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local seconds, last, age, ours = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local clock = string.format('%.6f', now)
if tonumber(redis.call('HGET', 'batches', worker) or 0) >= seq then return clock end
redis.call('HLEN', 'wallet')
local counted = redis.call('HGET', 'speed', 'hashes')
local hashes = redis.call('INCRBY', 'hashes', units)
for i = 8, #ARGV, 2 do redis.call('HSET', 'wallet', ARGV[i], ARGV[i + 1]) end
redis.call('HSET', 'batches', worker, seq)

-- The chart's past: in the hash `speed`, for each second of Redis' clock, the hashes of that second. A batch is spread
-- evenly over the time its units took, at most 2 s each, so a steady worker is a flat line whatever its batches are; the
-- last unit over its own time, as the pace may have changed; and around the moments when they were done, half a unit
-- before and behind, so those waiting for rng do not count too early.
local first = math.floor(now) - 300
local function spread(amount, from, to)
  for second = math.max(math.floor(from), first), math.floor(to) do
    local part = math.min(second + 1, to) - math.max(second, from)
    redis.call('HINCRBYFLOAT', 'speed', string.format('%d', second), string.format('%.6f', amount * part / (to - from)))
  end
end
if redis.call('HEXISTS', 'speed', string.format('%d', now)) == 0 then -- once a second, forget what is too old
  for _, field in ipairs(redis.call('HKEYS', 'speed')) do
    if (tonumber(field) or now) < first then redis.call('HDEL', 'speed', field) end
  end
end
local function mined(amount, took, ended)
  local unit = math.max(math.min(took / amount, 2), 0.0001)
  spread(amount, ended - (amount - 0.5) * unit, ended + 0.5 * unit)
end
local ended = math.min(now - age, ours) -- by the worker's idea of our clock, as we may hear of it late
mined(1, last, ended)
if units > 1 then mined(units - 1, seconds - last, ended - last) end

-- What other programs added since the last batch counts as mined in the last 2 seconds.
local others = counted and hashes - units - counted or 0
if others > 0 then spread(others, now - 2, now) end
redis.call('HSET', 'speed', 'hashes', string.format('%d', hashes))
return clock
