-- Take a lease that is free, has run out, or is already the holder's.
-- KEYS: lease, the task's token counter. ARGV: holder, milliseconds it lasts, milliseconds it is kept after that.
-- Answers {token, until}, or nothing while somebody else holds it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = redis.call('HMGET', KEYS[1], 'holder', 'until')
if lease[1] and lease[1] ~= ARGV[1] and tonumber(lease[2]) > now then
  return false
end
local token = redis.call('INCR', KEYS[2])
local ends = now + tonumber(ARGV[2])
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'token', token, 'until', string.format('%d', ends))
redis.call('PEXPIREAT', KEYS[1], string.format('%d', ends + tonumber(ARGV[3])))
return {token, ends}
