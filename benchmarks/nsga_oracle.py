"""A synthetic oracle of (top-1 error, multiply-adds) on the published once-for-all space.

Self-contained and the same on every platform, so that other code can be measured on it. A config is
{'ks': [...], 'e': [...], 'd': [5 ints], 'r': int}; ks and e have sum(d) entries (active layers).
"""

import math

KS, ER, DP, RES = [3, 5, 7], [3, 4, 6], [2, 3, 4], list(range(192, 257, 4))
MAXD, NST = 4, 5


def encode(c):
    """46 ints."""
    x, p = [], 0
    for d in c["d"]:
        k = [KS.index(v) for v in c["ks"][p : p + d]] + [0] * (MAXD - d)
        e = [ER.index(v) for v in c["e"][p : p + d]] + [0] * (MAXD - d)
        x += [DP.index(d), *k, *e]
        p += d
    return [*x, RES.index(c["r"])]


def decode(x):
    c = {"ks": [], "e": [], "d": [], "r": RES[x[45]]}
    for s in range(NST):
        b = x[9 * s : 9 * s + 9]
        d = DP[b[0]]
        c["d"].append(d)
        c["ks"] += [KS[i] for i in b[1 : 1 + d]]
        c["e"] += [ER[i] for i in b[5 : 5 + d]]
    return c


def make_divisible(v, div=8):
    n = max(div, int(v + div / 2) // div * div)
    return n + div if n < 0.9 * v else n


def complexity(c, width=1.0, n_classes=1000):
    """Multiply-adds, parameters: as torchprofile 0.0.1 counts (conv, linear, mul, mean; BN 0)."""
    base = [make_divisible(b * width) for b in (16, 24, 40, 80, 112, 160)]
    fin, last = make_divisible(960 * width), make_divisible(1280 * width)
    stride, hsw, se = (2, 2, 2, 1, 2), (0, 0, 1, 1, 1), (0, 1, 0, 1, 1)
    h = (c["r"] + 1) // 2
    m = base[0] * h * h * 27 + base[0] * h * h  # stem conv + h_swish mul
    q = base[0] * 27 + 2 * base[0]
    m += base[0] * h * h * 9 + base[0] * h * h * base[0]  # block 0 (3x3 dw, relu, no SE, e=1)
    q += base[0] * 9 + 2 * base[0] + base[0] * base[0] + 2 * base[0]
    cin, p = base[0], 0
    for s in range(NST):
        cout = base[s + 1]
        for j in range(c["d"][s]):
            k, e = c["ks"][p], c["e"][p]
            p += 1
            mid = make_divisible(round(cin * e))
            m += mid * h * h * cin + (mid * h * h if hsw[s] else 0)
            q += mid * cin + 2 * mid
            if j == 0 and stride[s] == 2:
                h = (h + 1) // 2
            m += mid * h * h * k * k + (mid * h * h if hsw[s] else 0)
            q += mid * k * k + 2 * mid
            if se[s]:
                r = make_divisible(mid // 4)
                m += mid * h + mid + 2 * mid * r + mid * h * h  # two means, two 1x1, gate mul
                q += 2 * mid * r + r + mid
            m += cout * h * h * mid
            q += cout * mid + 2 * cout
            cin = cout
    m += fin * h * h * cin + fin * h * h + fin * h + fin  # 1x1 + h_swish + pool
    q += fin * cin + 2 * fin
    m += last * fin + last + last * n_classes
    q += last * fin + last * n_classes + n_classes
    return m, q


# -- synthetic accuracy ----------------------------------------------------------------------------

W = (0.10, 0.18, 0.24, 0.26, 0.22)  # stage importance
VD = {2: 0.0, 3: 0.62, 4: 1.0}
VE = {3: 0.0, 4: 0.45, 6: 1.0}
VK = (
    {3: 0.6, 5: 1.0, 7: 0.8},
    {3: 0.3, 5: 1.0, 7: 0.9},
    {3: 0.2, 5: 0.8, 7: 1.0},
    {3: 0.5, 5: 1.0, 7: 0.7},
    {3: 0.1, 5: 0.7, 7: 1.0},
)
G = (1.0, 0.8, 0.65, 0.55)  # layer importance inside a stage


def fnv1a64(ints):
    h = 0xCBF29CE484222325
    for b in ints:
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def true_top1(c):
    """Accuracy without noise (%)."""
    q, taper, late7, nlate, p = 0.0, 0, 0, 0, 0
    for s in range(NST):
        d = c["d"][s]
        t = 0.0
        for j in range(d):
            k, e = c["ks"][p + j], c["e"][p + j]
            t += G[j] * (0.35 * VE[e] + 0.20 * VK[s][k])
            if j and e < c["e"][p + j - 1]:
                taper += 1
            if s >= 3:
                nlate += 1
                late7 += k == 7
        q += W[s] * (0.45 * VD[d] + t / sum(G))
        p += d
    rho = (c["r"] - 192) / 64.0
    a = 70.5 + 7.0 * (1 - math.exp(-2.0 * q)) / (1 - math.exp(-2.0))
    a += 1.6 * (1 - math.exp(-1.5 * rho)) / (1 - math.exp(-1.5))
    a += 0.4 * rho * late7 / nlate  # resolution x late large kernels
    a -= 0.03 * taper  # expansion shrinking inside a stage
    mean = sum(c["d"]) / 5.0
    a -= 0.25 * math.sqrt(sum((v - mean) ** 2 for v in c["d"]) / 5.0)  # uneven depth
    return a


NOISE = 0.15  # half-width, percentage points


def top1(c, noise=NOISE):
    """What one evaluation measures (%), rounded to 0.01 as of 10,000 validation images."""
    u = fnv1a64(encode(c)) / 2.0**64
    return round(true_top1(c) + noise * (2 * u - 1), 2)


def evaluate(c):
    """Top-1 error in %, multiply-adds in millions."""
    return round(100 - top1(c), 2), round(complexity(c)[0] / 1e6, 2)


def hypervolume_2d(points, ref):
    pts = sorted(p for p in points if p[0] < ref[0] and p[1] < ref[1])
    hv, y = 0.0, ref[1]
    for a, b in pts:
        if b < y:
            hv += (ref[0] - a) * (y - b)
            y = b
    return hv


MIN_ARCH = {"ks": [3] * 10, "e": [3] * 10, "d": [2] * 5, "r": 192}
MAX_ARCH = {"ks": [7] * 20, "e": [6] * 20, "d": [4] * 5, "r": 256}
REF = (1.01 * evaluate(MIN_ARCH)[0], 1.01 * evaluate(MAX_ARCH)[1])  # fixed nadir*1.01


def norm_hv(points, ref=REF):
    return hypervolume_2d(points, ref) / (ref[0] * ref[1])
