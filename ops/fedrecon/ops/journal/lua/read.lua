-- Read one stream at one moment.
-- KEYS: head, events. ARGV: version to read after ('' for the snapshot's), most events to return ('' for all).
-- Answers {version, snapshot version, snapshot (only without a version to read after), events}.
local head = redis.call('HMGET', KEYS[1], 'version', 'snapshot_version')
local version, snapshot_version = tonumber(head[1] or 0), tonumber(head[2] or 0)
local after, snapshot = tonumber(ARGV[1]), false
if not after then
  after = snapshot_version
  snapshot = redis.call('HGET', KEYS[1], 'snapshot')
end
local events = {}
if after >= snapshot_version and after < version then
  local range = {'XRANGE', KEYS[2], string.format('%d-0', after + 1), '+'}
  if ARGV[2] ~= '' then
    range[5], range[6] = 'COUNT', ARGV[2]
  end
  for number, entry in ipairs(redis.call(unpack(range))) do
    events[number] = entry[2][2]
  end
end
return {version, snapshot_version, snapshot, events}
