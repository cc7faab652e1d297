-- Replace the events up to a version by a snapshot.
-- KEYS: head, events. ARGV: version, snapshot. Answers {'applied'} or {'stale', actual version}.
local head = redis.call('HMGET', KEYS[1], 'version', 'snapshot_version')
local version, snapshot_version, through = tonumber(head[1] or 0), tonumber(head[2] or 0), tonumber(ARGV[1])
if through > version then
  return {'stale', version}
end
if through > snapshot_version then
  redis.call('HSET', KEYS[1], 'snapshot', ARGV[2], 'snapshot_version', through)
  if through == version then
    redis.call('DEL', KEYS[2])  -- an empty stream still takes room; the next append makes it anew
  else
    redis.call('XTRIM', KEYS[2], 'MINID', '=', string.format('%d-0', through + 1))
  end
end
return {'applied'}
