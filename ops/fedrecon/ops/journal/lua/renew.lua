-- Let a lease last anew, also one that ran out if nobody has taken it since.
-- KEYS: lease. ARGV: token, milliseconds it lasts, milliseconds it is kept after that.
-- Answers {until}, or nothing if the token is not the newest.
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then
  return false
end
local time = redis.call('TIME')
local ends = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2])
redis.call('HSET', KEYS[1], 'until', string.format('%d', ends))
redis.call('PEXPIREAT', KEYS[1], string.format('%d', ends + tonumber(ARGV[3])))
return {ends}
