// The collectives, and what tests set.
#include "cuda_cpu.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "block.h"

namespace cuda_cpu {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kGuards = 4096;
bool seen[kGuards];

bool same_place(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

void arrive(Block& b, Fiber& me, const char* name, unsigned mask, Site site) {
  Warp& warp = b.warps[me.warp];
  const unsigned bit = 1u << me.lane;
  me.name = name, me.mask = mask, me.site = site;
  if (!(mask & bit)) fail("%s: mask 0x%08x lacks the calling lane %u", name, mask, me.lane);
  if (mask & ~warp.alive)
    fail("%s: mask 0x%08x names lanes that have ended or never were, 0x%08x", name, mask,
         mask & ~warp.alive);
  // Two lanes that wait for each other have to be at the same call. One that waits for a lane which
  // waits for others first is no mistake: lanes part and meet again.
  const unsigned whole = warp.waiting_all;
  unsigned rest =
      warp.waiting & ~(mask == kAllLanes ? whole & (whole - 1) : 0);  // one of them will do
  for (; rest; rest &= rest - 1) {
    const Fiber& other = b.fibers[me.warp * kWarp + static_cast<unsigned>(__builtin_ctz(rest))];
    if (!(mask >> other.lane & 1) || !(other.mask & bit)) continue;
    if (other.mask != mask)
      fail("%s at %s: mask 0x%08x, but lane %u waits with 0x%08x in %s %s", name,
           describe(site).c_str(), mask, other.lane, other.mask, other.name,
           describe(other.site).c_str());
    if (!same_place(site, other.site) || std::strcmp(name, other.name) != 0)
      fail("%s at %s, but lane %u waits in %s %s", name, describe(site).c_str(), other.lane,
           other.name, describe(other.site).c_str());
  }
  warp.waiting |= bit;
  if (mask == kAllLanes) warp.waiting_all |= bit;
}

bool all_arrived(const Block& b, const Fiber& me) {
  const Warp& warp = b.warps[me.warp];
  if (me.mask == kAllLanes) return warp.waiting_all == kAllLanes;
  if ((warp.waiting & me.mask) != me.mask) return false;
  for (unsigned rest = me.mask; rest; rest &= rest - 1)
    if (b.fibers[me.warp * kWarp + static_cast<unsigned>(__builtin_ctz(rest))].mask != me.mask)
      return false;
  return true;
}

void let_go(Block& b, unsigned w, unsigned mask) {
  b.warps[w].waiting &= ~mask;
  b.warps[w].waiting_all &= ~mask;
  b.warps[w].ready |= mask;
}

}  // namespace

// ---- collectives of a warp --------------------------------------------------------------------

unsigned lane() { return this_block("a shuffle").current->lane; }

void sync_warp(unsigned mask, Site site) {
  Block& b = this_block("__syncwarp");
  Fiber& me = *b.current;
  arrive(b, me, "__syncwarp", mask, site);
  const auto lowest = static_cast<unsigned>(__builtin_ctz(mask));
  unsigned& barriers = b.warps[me.warp].barriers[lowest];
  Token& token = b.warps[me.warp].tokens[lowest][barriers % 2];
  release(token);
  if (all_arrived(b, me)) {
    ++barriers;
    let_go(b, me.warp, mask);
  }
  b.switch_to(b.pick());
  acquire(token);
}

unsigned vote(const char* name, unsigned mask, bool predicate, Site site) {
  Block& b = this_block(name);
  Fiber& me = *b.current;
  arrive(b, me, name, mask, site);
  me.value = predicate;
  if (all_arrived(b, me)) {
    Fiber* fibers = &b.fibers[me.warp * kWarp];
    unsigned result = 0;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      result |= static_cast<unsigned>(fibers[lane].value) << lane;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) fibers[__builtin_ctz(rest)].value = result;
    let_go(b, me.warp, mask);
  }
  b.switch_to(b.pick());
  return static_cast<unsigned>(me.value);
}

uint64_t shuffle(const char* name, unsigned mask, uint64_t value, unsigned source, Site site) {
  Block& b = this_block(name);
  Fiber& me = *b.current;
  arrive(b, me, name, mask, site);
  if (!(mask >> source & 1)) fail("%s: mask 0x%08x lacks the source %u", name, mask, source);
  ++b.progress;
  me.value = value;
  me.source = source;
  if (all_arrived(b, me)) {
    Fiber* fibers = &b.fibers[me.warp * kWarp];
    uint64_t results[kWarp];
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      results[lane] = fibers[fibers[lane].source].value;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      fibers[lane].value = results[lane];
    }
    let_go(b, me.warp, mask);
  }
  b.switch_to(b.pick());
  return me.value;
}

const void* gather(const void* mine, size_t bytes, Site site) {
  Block& b = this_block("gather");
  Fiber& me = *b.current;
  Warp& warp = b.warps[me.warp];
  if (bytes > kDeposit) fail("gather of %zu bytes, more than %zu", bytes, kDeposit);
  arrive(b, me, "gather", kAllLanes, site);
  ++b.progress;
  unsigned char* all = warp.deposits[warp.gathers % 2];
  const auto* from = static_cast<const volatile unsigned char*>(mine);
  volatile unsigned char* to = all + me.lane * kDeposit;
  size_t i = 0;
  if (reinterpret_cast<uintptr_t>(mine) % 4 == 0)
    for (; i + 4 <= bytes; i += 4)
      *reinterpret_cast<volatile uint32_t*>(to + i) =
          *reinterpret_cast<const volatile uint32_t*>(from + i);
  for (; i < bytes; ++i) to[i] = from[i];
  if (all_arrived(b, me)) {
    ++warp.gathers;
    let_go(b, me.warp, kAllLanes);
  }
  b.switch_to(b.pick());
  return all;
}

// ---- a block's barrier, sleep, guards ---------------------------------------------------------

int sync_threads(const char* name, int predicate, Site site) {
  Block& b = this_block(name);
  Fiber& me = *b.current;
  me.name = name, me.site = site, me.mask = 0;
  if (b.remaining != b.threads)
    fail("%s at %s: %u threads of the block have ended", name, describe(site).c_str(),
         b.threads - b.remaining);
  if (b.arrived == 0) {
    b.barrier_name = name;
    b.barrier_site = site;
  } else if (!same_place(site, b.barrier_site) || std::strcmp(name, b.barrier_name) != 0) {
    fail("%s at %s, but others wait in %s %s", name, describe(site).c_str(), b.barrier_name,
         describe(b.barrier_site).c_str());
  }
  // Two of each: threads may be at the next barrier while others still leave this one.
  const unsigned turn = b.barriers % 2;
  b.predicates[turn] += predicate != 0;
  release(b.barrier_tokens[turn]);
  b.warps[me.warp].at_barrier |= 1u << me.lane;
  if (++b.arrived == b.threads) {
    b.arrived = 0;
    ++b.barriers;
    b.predicates[1 - turn] = 0;
    for (unsigned w = 0; w < b.warp_count; ++w) {
      b.warps[w].ready = b.warps[w].at_barrier;
      b.warps[w].at_barrier = 0;
    }
    b.progress += std::strcmp(name, "__syncthreads") == 0;  // the others vote: a poll may
    b.begin_anew();
  }
  b.switch_to(b.pick());
  acquire(b.barrier_tokens[turn]);
  return b.predicates[turn];
}

void sleep(Site site) {
  Block& b = this_block("__nanosleep");
  Fiber& me = *b.current;
  me.slept_at = site;
  b.warps[me.warp].sleeping |= 1u << me.lane;
  b.switch_to(b.pick());
}

void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

long long clock() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void trap(Site site) { fail("__trap at %s", describe(site).c_str()); }

unsigned char* dynamic_shared() { return this_block("dynamic_shared").shared; }

bool barrier_active(int number) {
  if (number < 0 || number >= kGuards) fail("no guard may have the number %d", number);
  if (!__atomic_load_n(&seen[number], __ATOMIC_RELAXED))
    __atomic_store_n(&seen[number], true, __ATOMIC_RELAXED);
  return number != settings.mutant;
}

// ---- for tests --------------------------------------------------------------------------------

Settings settings;

Settings::Settings() {
  if (const char* text = std::getenv("CUDA_CPU_SCHEDULE")) read_order(text);
  if (const char* text = std::getenv("CUDA_CPU_MUTANT")) mutant = std::atoi(text);
  if (const char* text = std::getenv("CUDA_CPU_TIMEOUT")) timeout = std::atof(text);
}

void Settings::read_order(const std::string& name) {
  if (name == "forward") {
    order = Order::kForward;
  } else if (name == "reverse") {
    order = Order::kReverse;
  } else if (name.rfind("random:", 0) == 0) {
    seed = std::stoull(name.substr(7));
    order = Order::kRandom;
  } else {
    throw std::invalid_argument("schedule: forward, reverse or random:SEED, not " + name);
  }
}

int mutant() { return settings.mutant; }
void set_mutant(int number) { settings.mutant = number; }

void set_timeout(double seconds) { settings.timeout = seconds; }

std::set<int> barriers_seen() {
  std::set<int> numbers;
  for (int i = 0; i < kGuards; ++i)
    if (seen[i]) numbers.insert(i);
  return numbers;
}

void forget_barriers() { std::memset(seen, 0, sizeof seen); }

void set_schedule(const std::string& name) { settings.read_order(name); }

std::string schedule() {
  if (settings.order == Order::kForward) return "forward";
  if (settings.order == Order::kReverse) return "reverse";
  return "random:" + std::to_string(settings.seed);
}

}  // namespace cuda_cpu
