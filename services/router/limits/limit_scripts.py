"""What Valkey runs for limits that routers share: three Lua scripts, each one atomic step.

State, under one hash tag so that a cluster keeps it on one node:

- ``pool``: the epoch (``born``), and a clock that runs as fast as the share ``f`` of every limit
that
  is given out here: ``v`` microseconds at ``at``. ``f`` is 1 less the shares of routers that are
  missing: those may be admitting by themselves. ``d`` counts the times that ``f`` fell; ``dv`` and
  ``df`` say where the clock stood and what was left, ``pv`` where it stood the time before.
- ``members``: routers by when their lease ends. ``shares``: what each may admit alone, of every
  limit, when its lease has ended; together never more than 1.
- one hash for each limit: a bucket (``l`` units left at ``v``, after fall ``d``), or the calls
under
  way by router.

A bucket never holds more than its limit times ``f`` and fills at the limit's rate times ``f``. It
is forgotten once it would be full. What is not there is taken to have filled since the fall
before the last: nothing that was flushed or restarted admits a second burst.

Times are the server's, in microseconds; commands that were under way for too long (``proof`` is the
last server time that the router has seen) are void, so that a server which was stopped does not act
on what nobody waits for.
"""

from typing import Final

_STATE: Final = """
local pool, members, shares = KEYS[1], KEYS[2], KEYS[3]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local function text(number) return string.format('%.17g', number) end
local NAMES = {'at', 'v', 'f', 'd', 'dv', 'df', 'pv', 'born', 'fresh'}
local function load()
  local raw = redis.call('HMGET', pool, unpack(NAMES))
  if not raw[9] then return nil end
  local state = {}
  for index, name in ipairs(NAMES) do state[name] = tonumber(raw[index]) end
  return state
end
local function save(state)
  local flat = {}
  for _, name in ipairs(NAMES) do
    flat[#flat + 1] = name
    flat[#flat + 1] = text(state[name])
  end
  redis.call('HSET', pool, unpack(flat))
end
local function share_of(member) return tonumber(redis.call('HGET', shares, member) or '0') end
-- Up to now: the clock runs on, and falls behind where a lease ended.
local function advance(state)
  if now < state.at then now = state.at end
  local gone = redis.call('ZRANGEBYSCORE', members, '(' .. text(state.at), text(now), 'WITHSCORES')
  for index = 1, #gone, 2 do
    local at = tonumber(gone[index + 1])
    state.v = state.v + (at - state.at) * state.f
    state.at = at
    state.f = math.max(0, state.f - share_of(gone[index]))
    if state.f < 1e-9 then state.f = 0 end
    state.pv, state.dv, state.df, state.d = state.dv, state.v, state.f, state.d + 1
  end
  state.v = state.v + (now - state.at) * state.f
  state.at = now
  return #gone > 0
end
-- What is left in a bucket of so many units that fills in so many microseconds.
local function left(state, key, amount, window)
  local rate = amount / window
  local raw = redis.call('HMGET', key, 'l', 'v', 'd')
  local level = tonumber(raw[1] or '0')
  local fall = tonumber(raw[3] or '-1')
  if fall == state.d then
    level = level + rate * (state.v - tonumber(raw[2]))
  else
    if fall == state.d - 1 then
      level = level + rate * (state.dv - tonumber(raw[2]))
    elseif level >= 0 then
      level = raw[1] and 0 or rate * (state.dv - state.pv)
    end
    level = math.min(level, amount * state.df) + rate * (state.v - state.dv)
  end
  return math.min(level, amount * state.f)
end
local function put(state, key, level, amount, window)
  redis.call('HSET', key, 'l', text(level), 'v', text(state.v), 'd', text(state.d))
  local count = redis.call('ZCARD', members) + 1
  local ms = count * (window + math.max(0, -level) / amount * window) / 1000
  redis.call('PEXPIRE', key, string.format('%.0f', math.min(ms + 1000, 1e12)))
end
"""

ADMIT: Final = (
    _STATE
    + """
-- proof, its greatest age, router, age of a stale place; then kind, amount, window, units for each.
local state = load()
if not state then return {-1} end
if advance(state) then save(state) end
if now - tonumber(ARGV[1]) > tonumber(ARGV[2]) then return {-2, text(now)} end
local answer = {1, text(state.d), text(now)}
local levels = {}
for index = 4, #KEYS do
  local base = 4 + (index - 4) * 4
  local kind, amount = ARGV[base + 1], tonumber(ARGV[base + 2])
  local window, units = tonumber(ARGV[base + 3]), tonumber(ARGV[base + 4])
  if kind == 'places' then
    local busy = units
    local all = redis.call('HGETALL', KEYS[index])
    for at = 1, #all, 2 do
      local count, seen = string.match(all[at + 1], '^(%d+):(%d+)$')
      if all[at] ~= ARGV[3] and now - tonumber(seen) < tonumber(ARGV[4]) then
        busy = busy + tonumber(count)
      end
    end
    if busy > amount or now - state.born < 1000000 then return {0, index - 4, '1000000'} end
    answer[#answer + 1] = text(amount - busy)
  else
    local level = left(state, KEYS[index], amount, window)
    -- Never more than there can be, or it could never run.
    local taken = math.min(units, math.max(1, math.floor(amount * state.f)))
    if level + 1e-9 < taken then
      local speed = amount / window * math.max(state.f, 0.01)
      return {0, index - 4, string.format('%.0f', math.ceil((taken - level) / speed))}
    end
    levels[index] = level - taken
    answer[#answer + 1] = text(level - taken)
  end
end
for index = 4, #KEYS do
  local base = 4 + (index - 4) * 4
  if levels[index] then
    put(state, KEYS[index], levels[index], tonumber(ARGV[base + 2]), tonumber(ARGV[base + 3]))
  else
    redis.call('HSET', KEYS[index], ARGV[3], ARGV[base + 4] .. ':' .. string.format('%.0f', now))
    redis.call('PEXPIRE', KEYS[index], 60000)
  end
end
return answer
"""
)
"""Takes from every limit of a call, or from none. Answers ``[1, fall, now, left…]``,
``[0, index, wait_us]``, ``[-1]`` when the pool is lost, ``[-2, now]`` when the command is too old.
"""

SETTLE: Final = (
    _STATE
    + """
-- proof, its greatest age, router; then kind, amount, window, units, fall for each.
local state = load()
if not state then return {-1} end
if advance(state) then save(state) end
local current = now - tonumber(ARGV[1]) <= tonumber(ARGV[2])
for index = 4, #KEYS do
  local base = 3 + (index - 4) * 5
  local kind, amount = ARGV[base + 1], tonumber(ARGV[base + 2])
  local window, units = tonumber(ARGV[base + 3]), tonumber(ARGV[base + 4])
  if kind == 'places' then
    if units <= 0 then
      redis.call('HDEL', KEYS[index], ARGV[3])
    elseif current then
      redis.call('HSET', KEYS[index], ARGV[3], ARGV[base + 4] .. ':' .. string.format('%.0f', now))
      redis.call('PEXPIRE', KEYS[index], 60000)
    end
  elseif units > 0 or tonumber(ARGV[base + 5]) == state.d then
    -- More was used: owed in any case. Less: given back into the bucket that it came from.
    local level = left(state, KEYS[index], amount, window) - units
    put(state, KEYS[index], math.min(level, amount * state.f), amount, window)
  end
end
return {1}
"""
)
"""Corrects what calls took: units used beyond those reserved (less than none: given back), and how
many calls this router has under way. Answers ``[1]``, or ``[-1]`` when the pool is lost.
"""

BEAT: Final = (
    _STATE
    + """
-- proof, its greatest age, router, lease, age to forget at, share held, epoch before; then member,
-- share for each that the router knows of.
local proof, fresh_us, me = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local lease, forget, held, past = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
if now - proof > fresh_us then return {-2, text(now)} end
local state = load()
if not state then
  redis.call('DEL', members, shares)
  state = {at = now, v = 0, f = 1, d = now, dv = 0, df = 0, pv = 0, born = now}
  state.fresh = past == '0' and 1 or 0
  for index = 8, #ARGV, 2 do
    redis.call('ZADD', members, text(now), ARGV[index])
    redis.call('HSET', shares, ARGV[index], ARGV[index + 1])
  end
else
  advance(state)
end
if past ~= '0' and past ~= text(state.born) then state.fresh = 0 end
if state.fresh == 1 and now - state.born >= 1000000 then
  -- Nobody remembers an earlier pool: there is nothing that a burst could come on top of.
  state.fresh, state.dv, state.pv, state.df = 0, state.v - 1e15, state.v - 2e15, 1
end
if redis.call('ZCOUNT', members, '(' .. text(now), '+inf') == 0 then
  for _, member in ipairs(redis.call('ZRANGE', members, 0, -1)) do
    redis.call('ZADD', members, text(now), member)
  end
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', members, '-inf', text(now - forget))) do
  redis.call('ZREM', members, member)
  redis.call('HDEL', shares, member)
end
redis.call('ZADD', members, text(now + lease), me)
local all = redis.call('ZRANGE', members, 0, -1, 'WITHSCORES')
local count, others, missing, live = #all / 2, 0, 0, 0
for index = 1, #all, 2 do
  local share = share_of(all[index])
  if all[index] ~= me then others = others + share end
  if tonumber(all[index + 1]) > now then live = live + 1 else missing = missing + share end
end
local granted = math.max(0, math.min(1 / count, 1 - others))
redis.call('HSET', shares, me, text(math.max(held, granted)))
state.f = math.max(0, 1 - missing)
save(state)
for index = 1, 3 do redis.call('PEXPIRE', KEYS[index], 2592000000) end
local answer = {1, text(now), text(granted), live, text(state.born)}
for index = 1, #all, 2 do
  answer[#answer + 1] = all[index]
  answer[#answer + 1] = text(share_of(all[index]))
end
return answer
"""
)
"""A router lives: renews its lease and grants it a share. Answers
``[1, now, share, live, epoch, member, share, …]``, or ``[-2, now]`` when the command is too old.
"""

LEAVE: Final = """
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
return {1}
"""
"""A router stops for good: its share is free again."""

ALL: Final = (ADMIT, SETTLE, BEAT, LEAVE)
