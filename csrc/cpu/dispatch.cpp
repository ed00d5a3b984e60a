// The one table of instruction sets, best first, and the choice among them.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "arb/cpu.h"
#include "features.h"
#include "kernels.h"
#include "solver_kernels.h"
#include "tiles.h"

namespace arb {
namespace {

bool always() { return true; }

struct Entry {
    Isa isa;
    bool (*available)();
};

constexpr Entry kTable[] = {
#if defined(__x86_64__)
    {{"avx512vbmi", &avx512_kernels, &avx512vbmi_line, &avx512vbmi_tiles, &avx512_solver}, has_avx512vbmi},
    {{"avx512vnni", &avx512_kernels, &avx512vnni_line, &avx512vnni_tiles, &avx512_solver}, has_avx512vnni},
    {{"avx512", &avx512_kernels, &avx512_line, &avx512_tiles, &avx512_solver}, has_avx512},
#if defined(ARB_HAS_AVXVNNI)
    {{"avxvnni", &avx2_kernels, &avxvnni_line, &avxvnni_tiles, &avx2_solver}, has_avxvnni},
#endif
    {{"avx2", &avx2_kernels, &avx2_line, &avx2_tiles, &avx2_solver}, has_avx2},
#elif defined(__aarch64__)
    {{"neondot", &neon_kernels, &neondot_line, &neondot_tiles, &scalar_solver}, has_dot},
    {{"neon", &neon_kernels, &neon_line, &neon_tiles, &scalar_solver}, always},  // part of the architecture's baseline
#endif
    {{"scalar", &scalar_kernels, &scalar_line, &scalar_tiles, &scalar_solver}, always},
};

Status find(const char* name, const Isa** isa) {
    for (const Entry& entry : kTable) {
        if (std::strcmp(entry.isa.name, name) != 0) continue;
        if (!entry.available()) return Status::missing_isa;
        *isa = &entry.isa;
        return Status::ok;
    }
    return Status::unknown_isa;
}

Status choose(const Isa** isa) {
    const char* forced = std::getenv("ARBLLM_FORCE_ISA");
    if (forced != nullptr && forced[0] != '\0') return find(forced, isa);
    for (const Entry& entry : kTable) {
        if (!entry.available()) continue;
        *isa = &entry.isa;
        return Status::ok;
    }
    return Status::missing_isa;
}

std::atomic<const Isa*> active{nullptr};  // null: not chosen yet

}  // namespace

int list_isas(IsaInfo* infos, int capacity) {
    int count = 0;
    for (const Entry& entry : kTable) {
        if (infos != nullptr && count < capacity) infos[count] = {entry.isa.name, entry.available()};
        ++count;
    }
    return count;
}

Status set_isa(const char* name) {
    const Isa* isa = nullptr;
    const Status status = name == nullptr ? choose(&isa) : find(name, &isa);
    if (status == Status::ok) active.store(isa);
    return status;
}

Status active_kernels(const Isa** isa) {
    *isa = active.load();
    if (*isa != nullptr) return Status::ok;
    const Status status = choose(isa);
    if (status == Status::ok) active.store(*isa);
    return status;
}

Status active_isa(const char** name) {
    const Isa* isa = nullptr;
    const Status status = active_kernels(&isa);
    if (status == Status::ok) *name = isa->name;
    return status;
}

}  // namespace arb
