/* SPDX-License-Identifier: Apache-2.0 */
#include "verify/scan.hh"

#include <cctype>
#include <fstream>
#include <sstream>

namespace verify
{

namespace
{

using Words = std::vector<std::string>;

/* Identifiers, and all else by characters; comments, strings and directives are left out. */
Words
words_of(const std::string &s)
{
    Words out;
    const auto is_name = [](char c) { return isalnum((unsigned char)c) || c == '_'; };

    for (size_t i = 0, line = 0; i < s.size();) {
        if (s.compare(i, 2, "/*") == 0) {
            i = s.find("*/", i) + 2;
        } else if (s[i] == '#' && s.find_first_not_of(" \t", line) == i) {
            while (i < s.size() && s[i] != '\n')
                i += s[i] == '\\' ? 2 : 1;
        } else if (s[i] == '"' || s[i] == '\'') {
            const char quote = s[i++];

            while (s[i] != quote)
                i += s[i] == '\\' ? 2 : 1;
            i++;
        } else if (is_name(s[i])) {
            const size_t from = i;

            while (i < s.size() && is_name(s[i]))
                i++;
            out.push_back(s.substr(from, i - from));
        } else {
            if (s[i] == '\n')
                line = i + 1;
            if (!isspace((unsigned char)s[i]))
                out.push_back(std::string(1, s[i]));
            i++;
        }
    }
    return out;
}

/* Behind the bracket that closes the one at i. */
size_t
behind(const Words &w, size_t i)
{
    int depth = 0;

    do {
        depth += w[i] == "(" || w[i] == "{" || w[i] == "[";
        depth -= w[i] == ")" || w[i] == "}" || w[i] == "]";
        i++;
    } while (depth > 0 && i < w.size());
    return i;
}

struct Scanner {
    Scanner(const Words &words, std::set<std::string> all,
            const std::set<std::string> &known)
        : w(words), names(std::move(all)), calls(known)
    {
    }

    Nodes sequence(size_t from, size_t to)
    {
        Nodes out;

        while (from < to)
            from = statement(from, to, out);
        return tidied(out);
    }

    /* Names that are declared __shared__ in [from, to); memory of a size that the launch says has
     * its names from who carves it up. */
    void declared(size_t from, size_t to)
    {
        for (size_t i = from; i < to; i++) {
            if (w[i] != "__shared__" || w[i - 1] == "extern")
                continue;
            for (i++; w[i] != ";";) {
                if (w[i] == "[" || w[i] == "(")
                    i = behind(w, i);
                else if (w[i + 1] == "[" || w[i + 1] == "," || w[i + 1] == ";")
                    names.insert(w[i++]);
                else
                    i++;
            }
        }
    }

  private:
    const Words &w;
    std::set<std::string> names;
    const std::set<std::string> &calls;

    static bool waits(const Nodes &n)
    {
        for (const Node &x : n)
            if (x.kind != Node::NAMES)
                return true;
        return false;
    }

    /* Loops and branches without barriers are as good as their names. */
    static Nodes tidied(const Nodes &n)
    {
        Nodes out;
        const auto add = [&](const std::set<std::string> &some) {
            if (some.empty())
                return;
            if (out.empty() || out.back().kind != Node::NAMES)
                out.push_back({Node::NAMES, {}, {}});
            out.back().names.insert(some.begin(), some.end());
        };

        for (const Node &x : n) {
            bool any = false;

            for (const Nodes &part : x.parts)
                any = any || waits(part);
            if (x.kind == Node::NAMES)
                add(x.names);
            else if (x.parts.empty() || any)
                out.push_back(x);
            else
                for (const Nodes &part : x.parts)
                    for (const Node &y : part)
                        add(y.names);
        }
        return out;
    }

    /* What is in a lambda that is handed to a function of `calls` happens where that one calls it:
     * its table says what stands for its name (Kernel::given). */
    void mention(size_t from, size_t to, Nodes &out)
    {
        bool call = false;

        for (size_t i = from; i < to; i++) {
            if (call && w[i] == "]" && w[i + 1] == "{")
                i = behind(w, i + 1) - 1;
            if (w[i] == "__syncthreads")
                out.push_back({Node::BLOCK, {}, {}});
            else if (w[i] == "__syncwarp")
                out.push_back({Node::WARP, {}, {}});
            else if (w[i] == "sync" && w[i - 1] == "." && w[i - 2] == "cluster")
                out.push_back({Node::CLUSTER, {}, {}});
            else if (calls.count(w[i]) && (w[i + 1] == "(" || w[i + 1] == "<"))
                out.push_back({Node::CALL, {w[i]}, {}}), call = true;
            else if (names.count(w[i]) && (w[i - 1] != "." || w[i + 1] == "("))
                out.push_back({Node::NAMES, {w[i]}, {}});
        }
    }

    size_t statement(size_t i, size_t to, Nodes &out)
    {
        if (w[i] == "{") {
            const size_t end = behind(w, i);
            const Nodes inner = sequence(i + 1, end - 1);

            out.insert(out.end(), inner.begin(), inner.end());
            return end;
        }
        if (w[i] == "for" || w[i] == "while") {
            const size_t body = behind(w, i + 1);
            Node loop = {Node::LOOP, {}, {{}}};

            mention(i + 1, body, loop.parts[0]);
            i = statement(body, to, loop.parts[0]);
            loop.parts[0] = tidied(loop.parts[0]);
            out.push_back(loop);
            return i;
        }
        if (w[i] == "if") {
            size_t then = i + 1;

            if (w[then] == "constexpr")
                then++;
            const size_t body = behind(w, then);
            Node both = {Node::BRANCHES, {}, {{}}};

            mention(i + 1, body, out);
            i = statement(body, to, both.parts[0]);
            both.parts[0] = tidied(both.parts[0]);
            if (i < to && w[i] == "else") {
                both.parts.push_back({});
                i = statement(i + 1, to, both.parts[1]);
                both.parts[1] = tidied(both.parts[1]);
            }
            out.push_back(both);
            return i;
        }
        size_t end = i;

        while (end < to && w[end] != ";")
            end = w[end] == "(" || w[end] == "{" || w[end] == "[" ? behind(w, end)
                                                                  : end + 1;
        for (size_t k = i; k < end; k++)
            if (w[k] == "__shared__")
                return end + 1;
        mention(i, end, out);
        return end + 1;
    }
};

Nodes
parse(std::istringstream &in, std::string &stop)
{
    Nodes out;
    std::string word;

    while (in >> word) {
        if (word == "}" || word == ")" || word == "/") {
            stop = word;
            return out;
        }
        if (word == "|" || word == "||" || word == ".") {
            out.push_back({word == "|"    ? Node::BLOCK
                           : word == "||" ? Node::CLUSTER
                                          : Node::WARP,
                           {},
                           {}});
        } else if (word == "{" || word == "(") {
            Node n = {word == "{" ? Node::LOOP : Node::BRANCHES, {}, {}};

            do
                n.parts.push_back(parse(in, stop));
            while (stop == "/");
            out.push_back(n);
        } else if (word.size() > 2 && word.compare(word.size() - 2, 2, "()") == 0) {
            out.push_back({Node::CALL, {word.substr(0, word.size() - 2)}, {}});
        } else {
            if (out.empty() || out.back().kind != Node::NAMES)
                out.push_back({Node::NAMES, {}, {}});
            out.back().names.insert(word);
        }
    }
    stop.clear();
    return out;
}

} // namespace

bool
scan(const std::string &path, const std::string &function,
     const std::set<std::string> &names, const std::set<std::string> &calls, Nodes &to)
{
    std::ifstream file(path);
    std::stringstream text;

    text << file.rdbuf();
    const Words w = words_of(text.str());

    for (size_t i = 0; i + 1 < w.size(); i++) {
        if (w[i] != function || w[i + 1] != "(")
            continue;
        size_t body = behind(w, i + 1);

        if (body < w.size() && w[body] == "const")
            body++;
        if (body >= w.size() || w[body] != "{")
            continue;
        Scanner s(w, names, calls);
        const size_t end = behind(w, body);

        s.declared(body, end);
        to = s.sequence(body + 1, end - 1);
        return true;
    }
    return false;
}

std::string
text_of(const Nodes &n)
{
    std::string out;
    const auto add = [&](const std::string &word) {
        out += (out.empty() ? "" : " ") + word;
    };

    for (const Node &x : n) {
        std::string inner;

        switch (x.kind) {
        case Node::BLOCK: add("|"); break;
        case Node::CLUSTER: add("||"); break;
        case Node::WARP: add("."); break;
        case Node::CALL: add(*x.names.begin() + "()"); break;
        case Node::NAMES:
            for (const std::string &name : x.names)
                add(name);
            break;
        default:
            for (const Nodes &part : x.parts)
                inner += (inner.empty() ? "" : " / ") + text_of(part);
            add(x.kind == Node::LOOP ? "{ " + inner + " }" : "( " + inner + " )");
        }
    }
    return out;
}

Nodes
nodes_of(const std::string &text)
{
    std::istringstream in(text);
    std::string stop;

    return parse(in, stop);
}

} // namespace verify
