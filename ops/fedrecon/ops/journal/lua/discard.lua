-- Delete a stream that has ended.
-- KEYS: names of the task's streams, head, events. ARGV: name, version of its last event.
-- Answers {'applied'}, also if it is gone, or {'stale', actual version}.
local version = redis.call('HGET', KEYS[2], 'version')
if version and version ~= ARGV[2] then
  return {'stale', tonumber(version)}
end
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('ZREM', KEYS[1], ARGV[1])
return {'applied'}
