-- Note keys until instants, each by itself.
-- KEYS: the keys. ARGV: a value that is this caller's alone, then until when each is noted.
-- Answers 1 for each key that is new, or that this caller noted before, and 0 for the others.
local mine, answers = ARGV[1], {}
for number, key in ipairs(KEYS) do
  local noted = redis.call('SET', key, mine, 'NX', 'GET', 'PXAT', ARGV[number + 1])
  answers[number] = (not noted or noted == mine) and 1 or 0
end
return answers
