-- What /json tells, in one round trip: coins, hashes, Redis' clock and, from second ARGV[1] on, at most ARGV[2] speeds of
-- whole seconds that no worker adds to any more: after 2 s (worker/count.lua), and 0.1 s for the way.
local time = redis.call('TIME')
local clock = time[1] + time[2] / 1e6
local past = math.floor(clock - 2.1)
local start = math.min(math.max(math.ceil(ARGV[1]), past - ARGV[2]), past)
local seconds = {}
for second = start, past - 1 do table.insert(seconds, string.format('%d', second)) end
local speed = start < past and redis.call('HMGET', 'speed', unpack(seconds)) or {}
return {redis.call('HLEN', 'wallet'), redis.call('GET', 'hashes'), string.format('%.6f', clock), start, speed}
