/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs all obligations and prints a table. Each proof lives in a child of its own with an alarm,
 * because Z3 does not always keep to its time limit; what is not proved in time is not proved.
 *
 *   prove --stages SOURCES
 *   prove [--list] [--only NAME] [--smt2 DIR] [--timeout SECONDS] CONFIG-DIR...
 *
 * --smt2 keeps the text of every query and its digest (DIR/SUMS); the children write nothing else.
 */
#include "config.h"

#include <getopt.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "verify/prove.hh"

extern "C" {
#include "base/clock.h"
#include "base/err.h"
}

using namespace verify;

Int
Statement::any(const std::string &name, Int low, Int high)
{
    const Int x = unknown(name.c_str());

    assume(x >= low && x <= high);
    return x;
}

Statement::Pair
Statement::two(const std::string &name, Int low, Int high)
{
    return {any(name, low, high), any(name + "'", low, high)};
}

void
Statement::alone(Int place_x, Int place_y, Bool same)
{
    claim(implies(place_x == place_y, same));
}

void
Statement::apart(Int x, Int n, Int y, Int m)
{
    claim(x + n <= y || y + m <= x);
}

namespace
{

enum Answer { PROVED, REFUTED, UNKNOWN, DIED };

struct Outcome {
    Answer answer = DIED;
    double ms = 0;
    uint64_t digest = 0;
    std::string text; /* a counterexample, or why there is no answer */
};

unsigned timeout_s = 60;
const char *smt2_dir;

/* The negation: assumptions hold, and one claim does not. */
Z3_solver
query(const Statement &s)
{
    const Z3_solver solver = Z3_mk_solver(context());
    Bool all = true;

    Z3_solver_inc_ref(context(), solver);
    for (const Bool &b : s.assumed)
        Z3_solver_assert(context(), solver, b.a);
    for (const Bool &b : s.claimed)
        all = all && b;
    Z3_solver_assert(context(), solver, Z3_simplify(context(), (!all).a));
    return solver;
}

/* "claim 3", or "duty 1": the first that these values break. Duties come behind `own`
 * claims. */
std::string
broken(const Statement &s, size_t own, Z3_model m)
{
    for (size_t i = 0; i < s.claimed.size(); i++) {
        Z3_ast value;

        if (Z3_model_eval(context(), m, s.claimed[i].a, true, &value) &&
            Z3_get_bool_value(context(), value) == Z3_L_FALSE)
            return (i < own ? "claim " : "duty ") +
                   std::to_string(i < own ? i + 1 : i - own + 1);
    }
    return "a claim";
}

/* "t = 127, p = 3", from the model's lines "t -> 127". */
std::string
counterexample(Z3_solver solver)
{
    const std::string model =
        Z3_model_to_string(context(), Z3_solver_get_model(context(), solver));
    std::string out;

    for (size_t at = 0; at < model.size();) {
        const size_t end = model.find('\n', at),
                     stop = end == std::string::npos ? model.size() : end;
        std::string line = model.substr(at, stop - at);
        const size_t arrow = line.find(" -> ");

        if (arrow != std::string::npos) {
            line.replace(arrow, 4, " = ");
            out += (out.empty() ? "" : ", ") + line;
        }
        at = stop + 1;
    }
    return out;
}

/* In the child. The first line is answer, digest; what follows is text. */
void
answer(const Obligation &o, const Config &k, bool mutant, FILE *to)
{
    Statement s;
    s.mutant = mutant;
    o.state(k, s);
    const size_t own = s.claimed.size();
    for (const Bool &b : take_duties())
        s.claim(b);
    const Z3_solver solver = query(s);
    const std::string smt2 = Z3_solver_to_string(context(), solver);
    const Z3_lbool sat = Z3_solver_check(context(), solver);
    const Answer a = sat == Z3_L_FALSE ? PROVED : sat == Z3_L_TRUE ? REFUTED : UNKNOWN;

    fprintf(to, "%d %" PRIx64 "\n", a, (uint64_t)XXH3_64bits(smt2.data(), smt2.size()));
    if (a == REFUTED)
        fprintf(to, "%s: %s",
                broken(s, own, Z3_solver_get_model(context(), solver)).c_str(),
                counterexample(solver).c_str());
    if (a == UNKNOWN)
        fputs(Z3_solver_get_reason_unknown(context(), solver), to);
    if (smt2_dir != nullptr) {
        const std::string path = std::string(smt2_dir) + "/" + o.group + "-" + o.name +
                                 "-" + k.name + (mutant ? "-mutant" : "") + ".smt2";
        FILE *f = fopen(path.c_str(), "w");

        if (f == nullptr || fprintf(f, "%s(check-sat)\n", smt2.c_str()) < 0 ||
            fclose(f) != 0)
            fprintf(stderr, "prove: %s: %s\n", path.c_str(), strerror(errno));
    }
}

Outcome
run(const Obligation &o, const Config &k, bool mutant)
{
    Outcome out;
    int ends[2];
    char line[4096];
    int a = DIED, status;

    if (pipe(ends) == -1) {
        out.text = strerror(errno);
        return out;
    }
    fflush(nullptr);
    const uint64_t began = clock_ns();
    const pid_t child = fork();

    if (child == 0) {
        alarm(timeout_s);
        FILE *to = fdopen(ends[1], "w");
        answer(o, k, mutant, to);
        fflush(to);
        _exit(0);
    }
    close(ends[1]);
    FILE *from = fdopen(ends[0], "r");
    if (child > 0 && fgets(line, sizeof line, from) != nullptr &&
        sscanf(line, "%d %" SCNx64, &a, &out.digest) == 2)
        out.answer = static_cast<Answer>(a);
    while (fgets(line, sizeof line, from) != nullptr)
        out.text += line;
    fclose(from);
    if (child == -1 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
        out.answer = DIED;
        out.text = child == -1 ? strerror(errno)
                   : WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM
                       ? "no answer in time"
                       : "the prover died";
    }
    out.ms = static_cast<double>(clock_ns() - began) / 1e6;
    return out;
}

/* Of values that refute a mutant, as many as a line of the table has room for. */
std::string
in_short(const std::string &text)
{
    const size_t room = 160, end = text.size() > room ? text.rfind(", ", room) : text.npos;
    size_t more = 0;

    if (end == text.npos)
        return text;
    for (size_t i = end; i < text.size(); i++)
        more += text[i] == '=';
    return text.substr(0, end) + ", and " + std::to_string(more) + " more";
}

/* Proves it for all configurations, refutes its mutant for all. False: something went
 * wrong. */
bool
settle(const Obligation &o, const std::vector<Config> &configs, FILE *sums)
{
    const size_t n = o.per_config ? configs.size() : 1;
    double ms = 0, mutant_ms = 0;
    std::string wrong, example;

    for (size_t i = 0; i < n; i++) {
        const Outcome p = run(o, configs[i], false), m = run(o, configs[i], true);

        ms += p.ms;
        mutant_ms += m.ms;
        if (sums != nullptr)
            fprintf(sums, "%016" PRIx64 " %016" PRIx64 " %s-%s-%s\n", p.digest, m.digest,
                    o.group, o.name, configs[i].name.c_str());
        if (p.answer != PROVED && wrong.empty())
            wrong = configs[i].name + ": " +
                    (p.answer == REFUTED ? "refuted: " : "no answer: ") + p.text;
        else if (m.answer != REFUTED && wrong.empty())
            wrong = configs[i].name + ": its mutant " +
                    (m.answer == PROVED ? "was proved" : "has no answer: " + m.text);
        if (example.empty())
            example = m.text;
    }
    printf("%-9s %-20s %7zu  %-8s %7.0f  %7.0f  %s\n", o.group, o.name, n,
           wrong.empty() ? "proved" : "FAILED", ms, mutant_ms,
           wrong.empty() ? ("refuted: " + in_short(example)).c_str() : wrong.c_str());
    return wrong.empty();
}

bool
load(const char *dir, std::vector<Config> &to)
{
    Config k;
    struct err e;

    if (model_config_load(&k.c, dir, &e) == -1) {
        fprintf(stderr, "prove: %s: %s\n", dir, e.text);
        return false;
    }
    const std::string path = dir;
    k.name = path.substr(path.find_last_of('/') + 1);
    to.push_back(k);
    return true;
}

} // namespace

int
main(int argc, char **argv)
{
    static const struct option options[] = {{"list", no_argument, nullptr, 'l'},
                                            {"only", required_argument, nullptr, 'o'},
                                            {"smt2", required_argument, nullptr, 's'},
                                            {"stages", required_argument, nullptr, 'b'},
                                            {"timeout", required_argument, nullptr, 't'},
                                            {nullptr, 0, nullptr, 0}};
    std::vector<Config> configs;
    bool list = false, good = true;
    std::string only; /* a group or an obligation */
    FILE *sums = nullptr;
    int c;

    while ((c = getopt_long(argc, argv, "", options, nullptr)) != -1) {
        if (c == 'l')
            list = true;
        else if (c == 'o')
            only = optarg;
        else if (c == 'b')
            return check_stages(optarg) ? 0 : 1;
        else if (c == 's')
            smt2_dir = optarg;
        else if (c != 't' || (timeout_s = static_cast<unsigned>(atoi(optarg))) == 0)
            return 64;
    }
    for (int i = optind; i < argc; i++)
        if (!load(argv[i], configs))
            return 66;
    if (configs.empty() && !list) {
        fprintf(stderr,
                "usage: prove [--list] [--only NAME] [--smt2 DIR] [--timeout SECONDS] "
                "CONFIG-DIR...\n");
        return 64;
    }
    if (smt2_dir != nullptr) {
        if ((mkdir(smt2_dir, 0777) == -1 && errno != EEXIST) ||
            (sums = fopen((std::string(smt2_dir) + "/SUMS").c_str(), "w")) == nullptr) {
            fprintf(stderr, "prove: %s: %s\n", smt2_dir, strerror(errno));
            return 73;
        }
    }
    size_t n = 0, bad = 0;

    if (!list)
        printf("%-9s %-20s %7s  %-8s %7s  %7s  %s\n", "group", "obligation", "configs",
               "result", "ms", "mutant", "the mutant");
    for (const auto *group :
         {&rings,     &pages,   &files,   &formats,  &keys,   &compress, &indexer,
          &attention, &rows,    &streams, &linear,   &packed, &attend,   &attend_many,
          &choosing,  &experts, &inputs,  &sampling, &steps,  &stages}) {
        for (const Obligation &o : *group) {
            if (list) {
                printf("%-9s %-20s %s\n", o.group, o.name, o.says);
                continue;
            }
            if (!only.empty() && only != o.group && only != o.name)
                continue;
            n++;
            bad += !settle(o, configs, sums);
        }
    }
    if (sums != nullptr && fclose(sums) != 0)
        good = false;
    if (!list)
        printf("%zu obligations, %zu not proved\n", n, bad);
    return good && bad == 0 && (list || n > 0) ? 0 : 1;
}
