-- Write events to several streams of one task, whole or not at all.
-- KEYS: names of the task's streams, lease (any key if none), then head and events of each stream.
-- ARGV: batch id, fencing token ('' if none), then for each stream: name, version, number of events, the events.
-- Answers {'applied'}, {'fenced'} or {'stale', name, actual version}.
local batch, token = ARGV[1], ARGV[2]
local stale
local position = 3
for key = 3, #KEYS, 2 do
  local name, after, count = ARGV[position], tonumber(ARGV[position + 1]), tonumber(ARGV[position + 2])
  local version = tonumber(redis.call('HGET', KEYS[key], 'version') or 0)
  if version ~= after then
    -- The answer to this very batch may have been lost: its first event carries the batch id, and if that was
    -- compacted, the head still knows the last one.
    if count > 0 and version > after then
      if redis.call('HGET', KEYS[key], 'batch') == batch then
        return {'applied'}
      end
      local id = string.format('%d-0', after + 1)
      local first = redis.call('XRANGE', KEYS[key + 1], id, id)
      if first[1] and first[1][2][4] == batch then
        return {'applied'}
      end
    end
    stale = stale or {'stale', name, version}
  end
  position = position + 3 + count
end
if token ~= '' and redis.call('HGET', KEYS[2], 'token') ~= token then
  return {'fenced'}
end
if stale then
  return stale
end
position = 3
for key = 3, #KEYS, 2 do
  local name, after, count = ARGV[position], tonumber(ARGV[position + 1]), tonumber(ARGV[position + 2])
  for number = 1, count do
    local id = string.format('%d-0', after + number)
    redis.call('XADD', KEYS[key + 1], id, 'event', ARGV[position + 2 + number], 'batch', number == 1 and batch or '')
  end
  if count > 0 then
    redis.call('HSET', KEYS[key], 'version', after + count, 'batch', batch)
    if after == 0 then
      redis.call('ZADD', KEYS[1], 0, name)
    end
  end
  position = position + 3 + count
end
return {'applied'}
