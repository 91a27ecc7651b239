"""Checks rendered Kubernetes objects against their schemas and against cutline: kubernetes.py FILE.yaml..."""

import argparse, json, os, pathlib, re, subprocess, sys, tempfile

import kubernetes_validate, yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
VERSION = "1.33"
errors = []


def check(condition, *message):
    if not condition:
        errors.append(" ".join(map(str, message)))


def read(path):
    return (ROOT / path).read_text()


# What the program has.
paths = json.loads(read("openapi.json"))["paths"]
metrics = set(re.findall(r"cutline_[a-z_]+", read("docs/observability.md").split("## Metrics")[1].split("## Logs")[0]))
settings = set(re.findall(r"^#([A-Z0-9_]+)=", read(".env.example"), re.M))
defaults = dict(re.findall(r"^#([A-Z0-9_]+)=(.*)$", read(".env.example"), re.M))
version = re.search(r'^version = "(.*)"', read("Cargo.toml"), re.M)[1]

UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def bytes_of(text):
    return int(text[:-2]) * UNITS[text[-2:]]


def check_container(where, pod, container, peak):
    env = {one["name"]: one["value"] for one in container["env"]}
    for name, value in env.items():
        check(name in settings, f"{where}: there is no setting {name}")
        check("e+" not in value, f"{where}: {name}={value} is not a number that the program reads")
    port = int(env["PORT"])
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    check(port in ports.values(), f"{where}: the program listens on {port}, the container has {ports}")
    for kind in ["startupProbe", "readinessProbe", "livenessProbe"]:
        probe = container[kind]
        get = probe["httpGet"]
        check("get" in paths.get(get["path"], {}), f"{where}: {kind} asks {get['path']}, which openapi.json lacks")
        check(ports.get(get["port"], get["port"]) == port, f"{where}: {kind} asks port {get['port']}")
    live, ready = container["livenessProbe"], container["readinessProbe"]
    patience = [one["periodSeconds"] * one["failureThreshold"] for one in (live, ready)]
    check(patience[0] > 4 * patience[1], f"{where}: liveness must be much slower than readiness: {patience}")
    delay, drain = (float(env[name]) for name in ("SHUTDOWN_DELAY", "SHUTDOWN_GRACE"))
    grace = pod["terminationGracePeriodSeconds"]
    check(delay + drain < grace, f"{where}: {delay} s and {drain} s are not below the grace period of {grace} s")
    check(patience[1] + ready["timeoutSeconds"] < delay, f"{where}: the pod stops before it is seen to be unready")
    limit = bytes_of(container["resources"]["limits"]["memory"])
    if peak and "MODEL" not in env:
        check(limit > peak, f"{where}: the memory limit {limit} is not above peak_bytes {peak}")
    check("cpu" not in container["resources"]["limits"], f"{where}: a limit of processor time")
    security = container["securityContext"]
    check(security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"], where, security)
    check(security["capabilities"] == {"drop": ["ALL"]}, where, security)
    check(pod["securityContext"]["runAsUser"] == 65532, f"{where}: the user is not the Dockerfile's")
    check(pod["automountServiceAccountToken"] is False, f"{where}: a token of the service account")
    check(not container["image"].endswith(":latest"), where, container["image"])
    batch = int(env.get("MAX_BATCH_SIZE", "8"))
    return batch


def check_scaled(where, scaled, batch):
    spec = scaled["spec"]
    check(spec["fallback"]["replicas"] >= spec["minReplicaCount"], f"{where}: the fallback is below the minimum")
    queries = [trigger["metadata"]["query"] for trigger in spec["triggers"]]
    for trigger, query in zip(spec["triggers"], queries):
        asked = set(re.findall(r"cutline_[a-z_]+", query))
        check(asked and asked <= metrics, f"{where}: not exported: {asked - metrics}")
        check(trigger["metadata"]["ignoreNullValues"] == "false", f"{where}: an empty answer counts as 0")
        check(trigger["metricType"] == "AverageValue", f"{where}: fallback needs AverageValue")
        check(query.count("{") == query.count("}") and query.count("(") == query.count(")"), where, query)
    joined = " ".join(queries)
    for part in ["queue_depth", "queue_reserved", "images_in_flight", "rejected_total{reason=\"queue_full\""]:
        check(part in joined, f"{where}: the signal lacks {part}")
    target = float(spec["triggers"][0]["metadata"]["threshold"])
    check(batch <= target <= 2 * batch, f"{where}: {target} images a replica are not one to two batches of {batch}")
    return queries


def validate(where, thing):
    """Against the schemas of Kubernetes; the rest is left to node."""
    try:
        kubernetes_validate.validate(thing, VERSION, strict=True)
        return True
    except kubernetes_validate.SchemaNotFoundError:
        return False
    except kubernetes_validate.ValidationError as error:
        errors.append(f"{where}: {list(error.path)}: {error.message}")
        return True


def check_file(path, peak):
    things = [one for one in yaml.safe_load_all(path.read_text()) if one]
    by_kind = {one["kind"]: one for one in things}
    check(len(by_kind) == len(things) and len(things) > 1, f"{path.name}: {len(things)} objects")
    others = []
    for one in things:
        where = f"{path.stem}: {one['kind']}"
        if one["kind"] == "InferenceService":
            # The predictor is a pod with a few fields more.
            predictor = dict(one["spec"]["predictor"])
            for field in ["minReplicas", "maxReplicas"]:
                predictor.pop(field, None)
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": predictor}
            check(validate(where, pod), f"{where}: no schema")
            batch = check_container(where, predictor, predictor["containers"][0], peak)
        elif not validate(where, one):
            others.append(one)
    if "Deployment" in by_kind:
        spec = by_kind["Deployment"]["spec"]
        pod = spec["template"]["spec"]
        batch = check_container(path.stem, pod, pod["containers"][0], peak)
        labels = spec["template"]["metadata"]["labels"].items()
        selectors = [spec["selector"]["matchLabels"], by_kind["Service"]["spec"]["selector"]]
        for kind, key in [("NetworkPolicy", "podSelector"), ("PodDisruptionBudget", "selector"), ("ServiceMonitor", "selector")]:
            if kind in by_kind:
                selectors.append(by_kind[kind]["spec"][key]["matchLabels"])
        for constraint in pod["topologySpreadConstraints"]:
            selectors.append(constraint["labelSelector"]["matchLabels"])
        # Without the version: it would leave out the old pods of a rollout.
        own = {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
        for selector in selectors:
            check(selector.items() <= labels and selector.keys() == own, f"{path.stem}: {selector}")
        if spec.get("replicas", 2) < 2:
            check("PodDisruptionBudget" not in by_kind, f"{path.stem}: a budget for one pod")
        else:
            check("PodDisruptionBudget" in by_kind, f"{path.stem}: no disruption budget")
    if "ScaledObject" in by_kind:
        queries.extend(check_scaled(path.stem, by_kind["ScaledObject"], batch))
        check("replicas" not in by_kind.get("Deployment", {"spec": {}})["spec"], f"{path.stem}: two owners of replicas")
    if "ServiceMonitor" in by_kind:
        check(by_kind["ServiceMonitor"]["spec"]["endpoints"][0]["path"] in paths, f"{path.stem}: no such path")
    return others


def check_others(things):
    """KEDA's and the operator's objects, with the schemas that their packages have."""
    script = """
        import { pathToFileURL } from "node:url";
        const modules = {
          ScaledObject: "keda/keda.sh/v1alpha1/ScaledObject.js",
          ServiceMonitor: "prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor.js",
        };
        for (const thing of JSON.parse(process.argv[1])) {
          const module = modules[thing.kind];
          if (!module) throw new Error("no schema for " + thing.kind);
          const file = pathToFileURL(`${process.env.SCHEMAS}/node_modules/@kubernetes-models/${module}`);
          new ((await import(file))[thing.kind])(thing).validate();
        }
    """
    command = ["node", "--input-type=module", "--eval", script, json.dumps(things)]
    done = subprocess.run(command, capture_output=True, text=True)
    check(done.returncode == 0, done.stderr[-1500:])


def check_queries(queries):
    """Prometheus' own parser."""
    rules = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(queries)]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}, file)
        file.flush()
        command = [ROOT / ".ci/tool", "promtool", "check", "rules", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 77:
        print("skipped  the syntax of queries:", done.stderr.strip())
    else:
        check(done.returncode == 0, done.stdout, done.stderr)


parser = argparse.ArgumentParser()
parser.add_argument("files", nargs="+", type=pathlib.Path)
parser.add_argument("--health", type=pathlib.Path)
options = parser.parse_args()
memory = json.loads(options.health.read_text())["memory"] if options.health else None
queries, others = [], []
for path in options.files:
    others += check_file(path, memory and memory["peak_bytes"])
check(others, "no file has an object of KEDA")
check_others(others)
check_queries(queries)
chart = yaml.safe_load(read("deploy/helm/cutline/Chart.yaml"))
check(chart["appVersion"] == version, f"the chart is for {chart['appVersion']}, the program is {version}")
for error in errors:
    print("wrong:", error, file=sys.stderr)
print(f"{len(options.files)} files, {len(queries)} queries" + (f", peak_bytes {memory['peak_bytes']}" if memory else ""))
sys.exit(1 if errors else 0)
