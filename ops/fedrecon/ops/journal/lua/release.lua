-- Give a lease back if it is still the newest.
-- KEYS: lease. ARGV: token. Answers 1 if it was, 0 if it was lost already.
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
